//! A value that a thread refreshes, and nothing else: the least that a cache has to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

pub const TTL: Duration = Duration::from_millis(50);

/// The part of the time to live after which a get starts a refresh.
pub const REFRESH_AT: f64 = 0.2;

/// The time of a load.
pub const LOAD: Duration = Duration::from_millis(5);

pub struct Plain {
    value: Arc<RefreshedValue>,
    /// The begins of refreshes.
    orders: Sender<Duration>,
}

struct RefreshedValue {
    origin: Instant,
    /// The begin of the load of the value, in nanoseconds since the origin.
    begun: AtomicU64,
    is_refreshing: AtomicBool,
    blocking_loads: AtomicU64,
}

impl Plain {
    pub fn start() -> Plain {
        let value = Arc::new(RefreshedValue {
            origin: Instant::now(),
            begun: AtomicU64::new(0),
            is_refreshing: AtomicBool::new(false),
            blocking_loads: AtomicU64::new(0),
        });
        let (orders, receiver) = channel::<Duration>();
        let refreshed = value.clone();
        thread::spawn(move || {
            for begun in receiver {
                thread::sleep(LOAD);
                refreshed.begun.store(begun.as_nanos() as u64, SeqCst);
                refreshed.is_refreshing.store(false, SeqCst);
            }
        });
        Plain { value, orders }
    }

    /// Starts a refresh if it is time, and waits for it if the value has expired.
    pub fn get(&self) {
        let value = &*self.value;
        let mut is_blocked = false;
        loop {
            let now = value.origin.elapsed();
            let begun = Duration::from_nanos(value.begun.load(SeqCst));
            let age = now.saturating_sub(begun);
            if age >= TTL.mul_f64(REFRESH_AT) && !value.is_refreshing.swap(true, SeqCst) {
                self.orders.send(now).expect("the thread runs");
            }
            if age < TTL {
                break;
            }
            is_blocked = true;
            thread::sleep(Duration::from_micros(100));
        }
        if is_blocked {
            value.blocking_loads.fetch_add(1, SeqCst);
        }
    }

    pub fn blocking_loads(&self) -> f64 {
        self.value.blocking_loads.load(SeqCst) as f64
    }
}
