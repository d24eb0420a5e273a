//! The time-out of a socket, which ends a wait by the deadline of the exchange with few system calls.

use std::io;
use std::time::Duration;

/// The time-out that is set at the socket.
#[derive(Clone, Copy, Default)]
pub(crate) struct SocketTimeout {
    /// `None` before the first one was set.
    set: Option<Duration>,
    /// The time-out is kept if the time left is between these two.
    kept_from: Duration,
    kept_to: Duration,
}

impl SocketTimeout {
    /// Makes the next system call end before `left` is over. The call is then repeated for the rest.
    ///
    /// Linux ends a wait up to an eighth too late: it keeps timers in wheels, the coarser the longer
    /// they run. So 13/16 of `left` are set, which end within 59/64 of it. The rest of the rest is
    /// shorter each time, down to a tick of the kernel.
    ///
    /// Most exchanges begin with nearly the same time left. So a time-out between a half and 7/8 of
    /// `left` is kept, without a system call.
    pub(crate) fn prepare(
        &mut self,
        left: Duration,
        set: impl FnOnce(Duration) -> io::Result<()>,
    ) -> io::Result<()> {
        if (self.kept_from..=self.kept_to).contains(&left) {
            return Ok(());
        }
        let timeout = (left / 16 * 13).max(MIN_TIMEOUT);
        if self.set != Some(timeout) {
            set(timeout)?;
            *self = SocketTimeout::kept(timeout);
        }
        Ok(())
    }

    /// The state after `timeout` was set.
    fn kept(timeout: Duration) -> Self {
        SocketTimeout {
            set: Some(timeout),
            kept_from: timeout / 7 * 8,
            kept_to: timeout * 2,
        }
    }
}

/// The shortest time-out that is set. Linux rounds a time-out up to its tick, 1 to 10 ms.
pub(crate) const MIN_TIMEOUT: Duration = Duration::from_millis(1);

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn exchanges_with_similar_time_left_set_the_socket_timeout_once() {
        let mut timeout = SocketTimeout::default();
        let mut set = Vec::new();
        let mut prepare = |millis| {
            let left = Duration::from_millis(millis);
            timeout.prepare(left, |timeout| {
                set.push(timeout.as_secs_f64().round());
                Ok(())
            })
        };
        for _ in 0..100 {
            prepare(10_000).unwrap();
        }
        for millis in [9_900, 15_000, 1_000, 10_000] {
            prepare(millis).unwrap();
        }
        assert_eq!(set, [8.0, 1.0, 8.0]);
    }

    #[test]
    fn waits_end_at_the_deadline_although_each_ends_late() {
        let millis = Duration::from_millis;
        for limit in [1, 3, 20, 67, 100, 300, 512, 700, 1000, 30_000].map(millis) {
            // The time-out of an earlier exchange is as long as may be kept.
            let mut timeout = SocketTimeout::kept(limit / 8 * 7);
            let (mut over, mut waits) = (Duration::ZERO, 0);
            while over < limit {
                timeout.prepare(limit - over, |_| Ok(())).unwrap();
                // The wait ends an eighth late, and at the next tick of 4 ms.
                let wait = timeout.set.unwrap();
                over += wait + wait / 8 + millis(4);
                waits += 1;
            }
            assert!(over <= limit + millis(6), "{limit:?}: {over:?}");
            assert!(waits <= 10, "{limit:?}: {waits} waits");
        }
    }

    #[test]
    fn timeout_that_could_not_be_set_is_set_again() {
        let mut timeout = SocketTimeout::default();
        let left = Duration::from_secs(10);
        assert!(
            timeout
                .prepare(left, |_| Err(io::Error::other("no")))
                .is_err()
        );
        let mut again = false;
        let set = |_| {
            again = true;
            Ok(())
        };
        timeout.prepare(left, set).unwrap();
        assert!(again);
    }
}
