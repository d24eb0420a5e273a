//! A value behind a lock that a thread refreshes: the least that a cache has to do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

pub const TTL: Duration = Duration::from_millis(50);

/// The part of the time to live after which a get starts a refresh.
pub const REFRESH_AT: f64 = 0.2;

/// The time of a load.
pub const LOAD: Duration = Duration::from_millis(5);

pub struct Plain {
    value: Arc<RefreshedValue>,
    /// Orders a refresh, with the time when it was ordered.
    orders: Sender<Duration>,
}

struct RefreshedValue {
    origin: Instant,
    /// The value, and the start of its load, counted from the origin.
    value: RwLock<(Arc<str>, Duration)>,
    is_refreshing: AtomicBool,
    blocking_loads: AtomicU64,
}

impl Plain {
    pub fn start() -> Plain {
        let value = Arc::new(RefreshedValue {
            origin: Instant::now(),
            value: RwLock::new(("value".into(), Duration::ZERO)),
            is_refreshing: AtomicBool::new(false),
            blocking_loads: AtomicU64::new(0),
        });
        let (orders, receiver) = channel::<Duration>();
        let refreshed = value.clone();
        thread::spawn(move || {
            for begun in receiver {
                thread::sleep(LOAD);
                let old = {
                    let mut value = refreshed.value.write().expect("no panic");
                    std::mem::replace(&mut *value, ("value".into(), begun))
                };
                refreshed.is_refreshing.store(false, SeqCst);
                drop(old);
            }
        });
        Plain { value, orders }
    }

    /// Starts a refresh if it is time, and waits for it if the value has expired.
    pub fn get(&self) -> Arc<str> {
        let shared = &*self.value;
        let mut is_blocked = false;
        loop {
            let now = shared.origin.elapsed();
            let (value, begun) = shared.value.read().expect("no panic").clone();
            let age = now.saturating_sub(begun);
            if age >= TTL.mul_f64(REFRESH_AT) && !shared.is_refreshing.swap(true, SeqCst) {
                self.orders.send(now).expect("the thread runs");
            }
            if age < TTL {
                if is_blocked {
                    shared.blocking_loads.fetch_add(1, SeqCst);
                }
                return value;
            }
            is_blocked = true;
            thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn blocking_loads(&self) -> f64 {
        self.value.blocking_loads.load(SeqCst) as f64
    }
}
