//! How a connection to a peer is made.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::http::client::resolve::Addresses;
use crate::http::client::socket_timeout::MIN_TIMEOUT;

/// Connects to the first of the peer's addresses that answers, by `deadline`.
pub(crate) fn dial(addresses: &Addresses, deadline: Instant) -> io::Result<TcpStream> {
    let known = addresses.get(deadline)?;
    let dialled = first_of(&known, deadline, dial_one);
    if dialled.is_err() {
        addresses.refresh();
    }
    dialled
}

/// Dials the addresses in turn. Each gets an even share of the time that is left, so that one that
/// swallows packets does not use up the time of the next.
fn first_of<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    dial: impl Fn(SocketAddr, Duration) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for (at, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let others = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match dial(*address, (left / others).max(MIN_TIMEOUT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

/// A peer of this machine that is down can be "reached" by a connection to itself: the kernel gives
/// the connection a port of its own, sooner or later the very port that is dialled, and the two
/// ends meet (RFC 9293, section 3.5, simultaneous open). Kept, it would take the port from the peer
/// that starts again.
fn dial_one(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if stream.local_addr()? == address {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, MET_ITSELF));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

const MET_ITSELF: &str = "refused: nobody listens, and the connection met itself";

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (1..=count)
            .map(|port| SocketAddr::from(([10, 0, 0, 1], port)))
            .collect()
    }

    #[test]
    fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        let deadline = Instant::now() + Duration::from_millis(900);
        let connected = first_of(&addresses(3), deadline, |address, timeout| {
            if address.port() < 3 {
                std::thread::sleep(timeout);
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(address)
        });
        assert_eq!(connected.unwrap().port(), 3);
    }

    #[test]
    fn the_time_is_shared_by_the_addresses_that_are_left() {
        let deadline = Instant::now() + Duration::from_secs(12);
        let shares = Mutex::new(Vec::new());
        let error = first_of(&addresses(3), deadline, |_, timeout| {
            shares.lock().push(timeout.as_secs_f64().round());
            Err::<(), _>(io::ErrorKind::ConnectionRefused.into())
        })
        .unwrap_err();
        assert_eq!(*shares.lock(), [4.0, 6.0, 12.0]);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("10.0.0.1:3: "), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_to_itself_is_refused() {
        // Linux gives even ports to connections first. Without a listener every dial is refused,
        // until the port of the connection is the one it dials.
        let listener = (40_000..60_000)
            .step_by(2)
            .find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok())
            .expect("a free port");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let met = (0..400_000).any(|_| match dial_one(address, Duration::from_secs(1)) {
            Ok(_) => panic!("nobody listens"),
            Err(error) => error.to_string() == MET_ITSELF,
        });
        assert!(met);
    }
}
