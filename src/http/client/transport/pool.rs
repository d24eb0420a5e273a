//! The idle connections of the direct transport.

use std::collections::VecDeque;
use std::thread::{self, ThreadId};
use std::time::Instant;

use crate::http::client::transport::connection::PeerConnection;
use crate::http::client::transport::response::ResponseReader;
use crate::http::client::transport::target::Target;
use crate::sync::{Arc, Mutex};

/// A connection, with the bytes that were read from it and not used yet. It is boxed, because it moves
/// into the pool and out of it with each exchange.
pub(crate) type PooledConnection = Box<ResponseReader<PeerConnection>>;

/// The idle connections to one peer.
pub(crate) struct ConnectionPool {
    pub(crate) target: Arc<Target>,
    /// The connection used last is at the back.
    idle: Mutex<VecDeque<(ThreadId, PooledConnection)>>,
}

impl ConnectionPool {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        ConnectionPool {
            target,
            idle: Mutex::default(),
        }
    }

    /// Takes the connection that this thread used last, so that the peer's thread for it runs on
    /// the same processor as before. If there is none, takes the connection used last, so that
    /// surplus ones reach their maximum age and are closed.
    pub(crate) fn take(&self, now: Instant) -> Option<PooledConnection> {
        let thread = thread::current().id();
        loop {
            let (_, connection) = {
                let mut idle = self.idle.lock();
                match idle.iter().rposition(|(user, _)| *user == thread) {
                    Some(own) => idle.remove(own),
                    None => idle.pop_back(),
                }?
            };
            if self.target.may_use(&connection.source, now) {
                return Some(connection);
            }
        }
    }

    /// Returns a connection whose response was read to its end. A connection with leftover bytes is
    /// closed, because the bytes belong to no request.
    pub(crate) fn give_back(&self, connection: PooledConnection) {
        if !connection.is_empty() {
            return;
        }
        let thread = thread::current().id();
        let begun = connection.source.begun();
        // Closed after the lock is released.
        let _surplus = {
            let mut idle = self.idle.lock();
            idle.push_back((thread, connection));
            let is_old = |(_, oldest): &(_, PooledConnection)| oldest.source.is_too_old(begun);
            let surplus = idle.len() > self.target.config.max_idle_per_peer
                || (idle.len() > 1 && idle.front().is_some_and(is_old));
            surplus.then(|| idle.pop_front())
        };
    }

    /// Closes the idle connections that began no exchange after `then`.
    pub(crate) fn close_unused_since(&self, then: Instant) {
        // Closed after the lock is released.
        let _old: Vec<_> = {
            let mut idle = self.idle.lock();
            let (used, old) = std::mem::take(&mut *idle)
                .into_iter()
                .partition(|(_, connection)| connection.source.begun() > then);
            *idle = used;
            Vec::from(old)
        };
    }

    /// Closes all idle connections.
    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::http::client::transport::connection::MAX_IDLE_AGE;
    use crate::http::client::transport::connection::tests::{age, pair, port};
    use crate::http::client::transport::url::PeerUrl;
    use crate::http::config::Config;
    use std::net::TcpStream;

    /// A pool that got `count` connections, their ports, and their other ends.
    fn pool_with(max_idle: usize, count: usize) -> (ConnectionPool, Vec<u16>, Vec<TcpStream>) {
        let url = PeerUrl::parse("http://127.0.0.1:1").unwrap();
        let config = Config {
            max_idle_per_peer: max_idle,
            ..Config::for_test()
        };
        let pool = ConnectionPool::new(Target::new(&url, &Arc::new(config)));
        let (connections, others): (Vec<_>, Vec<_>) = (0..count).map(|_| pair()).unzip();
        let ports = connections.iter().map(port).collect();
        for connection in connections {
            pool.give_back(Box::new(ResponseReader::new(connection)));
        }
        (pool, ports, others)
    }

    fn idle_ports(pool: &ConnectionPool) -> Vec<u16> {
        let idle = pool.idle.lock();
        idle.iter().map(|(_, idle)| port(&idle.source)).collect()
    }

    #[test]
    fn pool_keeps_the_connections_used_last_up_to_its_limit() {
        let (pool, ports, _others) = pool_with(3, 5);
        assert_eq!(idle_ports(&pool), ports[2..]);
        assert_eq!(port(&pool.take(Instant::now()).unwrap().source), ports[4]);
        pool.clear();
        assert!(pool.take(Instant::now()).is_none());
    }

    #[test]
    fn thread_gets_the_connection_that_it_used_last() {
        let (pool, ports, _others) = pool_with(3, 2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let connection = pool.take(Instant::now()).unwrap();
                pool.give_back(connection);
            });
            other.join().unwrap();
        });
        assert_eq!(idle_ports(&pool), ports);
        assert_eq!(port(&pool.take(Instant::now()).unwrap().source), ports[0]);
        assert_eq!(port(&pool.take(Instant::now()).unwrap().source), ports[1]);
    }

    #[test]
    fn old_connections_are_closed_as_others_are_returned() {
        let (pool, ports, _others) = pool_with(10, 4);
        for (_, idle) in pool.idle.lock().iter_mut().take(2) {
            age(&mut idle.source, MAX_IDLE_AGE);
        }
        for first in 1..3 {
            let connection = pool.take(Instant::now()).unwrap();
            pool.give_back(connection);
            assert_eq!(idle_ports(&pool), ports[first..]);
        }
        let connection = pool.take(Instant::now()).unwrap();
        pool.give_back(connection);
        assert_eq!(idle_ports(&pool), ports[2..]);
    }

    #[test]
    fn only_connections_used_later_stay_after_one_was_silent() {
        let (pool, ports, _others) = pool_with(10, 3);
        let then = Instant::now();
        let mut used = pool.take(then).unwrap();
        used.source.begin(then + UNIT, UNIT);
        pool.give_back(used);
        pool.close_unused_since(then);
        assert_eq!(idle_ports(&pool), ports[2..]);
    }

    const UNIT: std::time::Duration = std::time::Duration::from_millis(1);

    #[test]
    fn connections_that_are_too_old_are_not_used() {
        let (pool, _, _others) = pool_with(3, 2);
        for (_, idle) in pool.idle.lock().iter_mut() {
            age(&mut idle.source, MAX_IDLE_AGE);
        }
        assert!(pool.take(Instant::now()).is_none());
        assert!(idle_ports(&pool).is_empty());
    }
}
