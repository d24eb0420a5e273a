//! Models of a look-up: requests that wait for the first one while it ends. Loom reports a deadlock if a
//! request waits for ever.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::loom_models::explore;
use crate::sync::thread;

/// Two requests need a connection while the name is looked up: before, while or after the look-up ends. Each
/// gets its result, and there is no second look-up.
fn requests_share_the_result(found: Option<SocketAddr>) {
    explore(move || {
        let look_ups = Arc::new(AtomicUsize::new(0));
        let counted = look_ups.clone();
        let url = PeerUrl::parse("http://cache.example:81").expect("a URL");
        let addresses = Arc::new(Addresses::with_look_up(&url, move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(found.into_iter().collect())
        }));
        let request = |addresses: Arc<Addresses>| {
            move || {
                let deadline = Instant::now() + Duration::from_secs(3600);
                let result = addresses.get(deadline).map_err(|error| error.kind());
                match found {
                    Some(found) => assert_eq!(result.expect("an address")[..], [found]),
                    None => assert_eq!(result.map(drop), Err(io::ErrorKind::NotFound)),
                }
            }
        };
        let other = thread::spawn(request(addresses.clone()));
        request(addresses)();
        other.join().unwrap();
        assert_eq!(look_ups.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn requests_that_wait_share_the_address() {
    requests_share_the_result(Some(SocketAddr::from(([10, 0, 0, 1], 81))));
}

#[test]
fn requests_that_wait_share_the_failure() {
    requests_share_the_result(None);
}
