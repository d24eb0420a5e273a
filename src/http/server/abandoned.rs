//! Counts the loads that still run although the client that started them has left.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Arc, Mutex};

/// The abandoned loads of a server's clients, by address.
///
/// A client that starts loads and does not wait for them occupies a loader thread with each. So an
/// address with too many of them may start no further load until one of them has ended.
pub(crate) struct AbandonedLoads {
    /// A list, because there are no more addresses than loader threads.
    by_addr: Mutex<Vec<(IpAddr, usize)>>,
    max_per_addr: usize,
}

/// A load that a client started. It counts as abandoned from [`abandon`](Self::abandon) until the
/// last reference is dropped. The loader thread holds one while the load runs.
pub(crate) struct StartedLoad {
    loads: Arc<AbandonedLoads>,
    addr: IpAddr,
    is_abandoned: AtomicBool,
}

impl AbandonedLoads {
    pub(crate) fn new(max_per_addr: usize) -> Arc<Self> {
        Arc::new(AbandonedLoads {
            by_addr: Mutex::default(),
            max_per_addr,
        })
    }

    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] if the address has abandoned too many loads.
    pub(crate) fn start(self: &Arc<Self>, addr: IpAddr) -> Result<Arc<StartedLoad>> {
        let abandoned = self.abandoned_by(addr);
        if abandoned >= self.max_per_addr {
            let message = format!(
                "{abandoned} loads that {addr} started and did not wait for are still running"
            );
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        Ok(Arc::new(StartedLoad {
            loads: self.clone(),
            addr,
            is_abandoned: AtomicBool::new(false),
        }))
    }

    fn abandoned_by(&self, addr: IpAddr) -> usize {
        let by_addr = self.by_addr.lock();
        let found = by_addr.iter().find(|(other, _)| *other == addr);
        found.map_or(0, |(_, count)| *count)
    }
}

impl StartedLoad {
    pub(crate) fn abandon(&self) {
        if !self.is_abandoned.swap(true, Ordering::Relaxed) {
            let mut by_addr = self.loads.by_addr.lock();
            match by_addr.iter_mut().find(|(addr, _)| *addr == self.addr) {
                Some((_, count)) => *count += 1,
                None => by_addr.push((self.addr, 1)),
            }
        }
    }
}

impl Drop for StartedLoad {
    fn drop(&mut self) {
        if !*self.is_abandoned.get_mut() {
            return;
        }
        let mut by_addr = self.loads.by_addr.lock();
        if let Some(at) = by_addr.iter().position(|(addr, _)| *addr == self.addr) {
            by_addr[at].1 -= 1;
            if by_addr[at].1 == 0 {
                by_addr.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn abandoned_load_counts_until_it_ends() {
        let loads = AbandonedLoads::new(1);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let first = loads.start(a.into()).expect("the first");
        let second = loads.start(a.into()).expect("none is abandoned");
        let on_loader_thread = first.clone();
        first.abandon();
        first.abandon();
        drop(first);
        let refused = loads.start(a.into()).map(drop).map_err(|e| e.kind());
        assert_eq!(refused, Err(ErrorKind::Overloaded));
        loads.start(b.into()).expect("another address");
        drop(on_loader_thread);
        drop(second);
        loads.start(a.into()).expect("the load has ended");
        assert!(loads.by_addr.lock().is_empty());
    }
}
