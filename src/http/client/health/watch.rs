//! The peers of a pool together: which are away, whether this process is cut off, and the probes.

use std::sync::Weak;
use std::time::{Duration, Instant};

use super::breaker::is_cut_off;
use super::{PeerHealth, Standing};
use crate::error::{Error, ErrorKind};
use crate::panics::caught;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, thread};

/// A peer that can be probed.
pub(crate) trait Probe: Send + Sync {
    /// Asks the peer whether it is alive.
    fn probe(&self) -> Result<(), Error>;
}

/// Watches the peers of a pool while one of them is away.
///
/// A breaker that opens calls [`wake`](Self::wake). The lock of the watch is taken after the breaker
/// changed, so the last of several concurrent calls reads the last state of each breaker. The thread
/// ends under the same lock, once it reads that all breakers are closed. So a breaker that opens is
/// either read by the thread, or starts another one.
pub(crate) struct Watch {
    /// How long a peer is down until it counts as absent.
    absent_after: Duration,
    /// The peers in the list that are not closed. While there is none, picks read nothing else.
    away: AtomicUsize,
    cut_off: AtomicBool,
    origin: Instant,
    /// When the next turn of the latencies is due, in nanoseconds since `origin`.
    turn_at: AtomicU64,
    watched: Mutex<Watched>,
    changed: Condvar,
}

struct Watched {
    /// Those in the present list, without this process.
    peers: Vec<WatchedPeer>,
    is_running: bool,
    /// Whether the pool was dropped.
    is_over: bool,
}

/// The health of a peer, and the peer itself as long as it is in use. The watch holds no peer, because
/// the drop of a transport is code of the program, which must not run under a lock.
#[derive(Clone)]
pub(crate) struct WatchedPeer {
    pub(crate) health: Arc<PeerHealth>,
    pub(crate) peer: Weak<dyn Probe>,
}

impl Watch {
    pub(crate) fn new(absent_after: Duration) -> Arc<Self> {
        Arc::new(Watch {
            absent_after,
            away: AtomicUsize::new(0),
            cut_off: AtomicBool::new(false),
            origin: Instant::now(),
            turn_at: AtomicU64::new(0),
            watched: Mutex::new(Watched {
                peers: Vec::new(),
                is_running: false,
                is_over: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Whether a peer is away.
    #[inline]
    pub(crate) fn is_any_away(&self) -> bool {
        self.away.load(Ordering::Relaxed) != 0
    }

    /// Whether so many peers are down that this process is the one that is cut off.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Called after an answer, and before a report: at least [`TURN`] after the last time, the latencies
    /// of all peers turn.
    #[inline]
    pub(crate) fn tick(&self, now: Instant) {
        let now = now.saturating_duration_since(self.origin).as_nanos() as u64;
        let due = self.turn_at.load(Ordering::Relaxed);
        if now >= due {
            self.turn(now, due);
        }
    }

    #[cold]
    fn turn(&self, now: u64, due: u64) {
        let turn = TURN.as_nanos() as u64;
        let set =
            self.turn_at
                .compare_exchange(due, now + turn, Ordering::Relaxed, Ordering::Relaxed);
        if set.is_err() {
            // Another thread does it.
            return;
        }
        let periods = 1 + u32::try_from((now - due) / turn).unwrap_or(u32::MAX - 1);
        for WatchedPeer { health, .. } in &self.watched.lock().peers {
            health.latencies.turn(periods);
        }
    }

    /// Watches these peers from now on. Returns those of before.
    #[must_use = "dropped where no lock is held"]
    pub(crate) fn set_peers(self: &Arc<Self>, peers: Vec<WatchedPeer>) -> Vec<WatchedPeer> {
        let before = std::mem::replace(&mut self.watched.lock().peers, peers);
        self.wake();
        before
    }

    /// Reads the breakers again, because one of them opened, or the list changed. Starts the thread if a
    /// peer is away and there is none.
    pub(crate) fn wake(self: &Arc<Self>) {
        let mut watched = self.watched.lock();
        self.update(&watched, Instant::now());
        let needs_thread = self.is_any_away() && !watched.is_running && !watched.is_over;
        if needs_thread {
            watched.is_running = true;
        }
        drop(watched);
        self.changed.notify_all();
        if needs_thread && !self.spawn() {
            // Without probes, only callers can notice that the peer is back. The next breaker that
            // opens tries to start the thread again.
            let mut watched = self.watched.lock();
            watched.is_running = false;
            self.away.store(0, Ordering::Relaxed);
        }
    }

    fn spawn(self: &Arc<Self>) -> bool {
        let watch = self.clone();
        let named = thread::Builder::new().name("larder-probe".into());
        named.spawn(move || watch.run()).is_ok()
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.watched.lock().is_over = true;
        self.changed.notify_all();
    }

    /// The work of the thread.
    fn run(&self) {
        while let Some(due) = self.next_due() {
            for (health, peer) in due {
                // A peer that is not in use any more needs no answer.
                let result = peer.map_or(Ok(()), |peer| {
                    let result = caught(|| peer.probe());
                    result.unwrap_or_else(|| Err(ErrorKind::Peer.into()))
                });
                health.on_probe(Instant::now(), result);
            }
        }
    }

    /// Waits for the next probes. `None` if the thread is to end.
    fn next_due(&self) -> Option<Vec<Due>> {
        let mut watched = self.watched.lock();
        loop {
            let now = Instant::now();
            let wake_at = self.update(&watched, now);
            if watched.is_over || !self.is_any_away() {
                watched.is_running = false;
                return None;
            }
            let due = watched.peers.iter();
            let due = due.filter(|watched| watched.health.begin_probe(now));
            let due: Vec<Due> = due.map(WatchedPeer::upgrade).collect();
            if !due.is_empty() {
                return Some(due);
            }
            let wait = wake_at.map_or(LONGEST_WAIT, |at| at.saturating_duration_since(now));
            watched = self.changed.wait_timeout(watched, wait.max(SHORTEST_WAIT));
        }
    }

    /// Sets the standing of each peer and of this process. Returns the time of the next change or probe.
    fn update(&self, watched: &Watched, now: Instant) -> Option<Instant> {
        let (mut open, mut absent, mut present) = (0, 0, 0);
        let mut next: Option<Instant> = None;
        for WatchedPeer { health, .. } in &watched.peers {
            let (since, probe_at) = {
                let breaker = health.breaker.lock();
                (breaker.open_since(), breaker.probe_at())
            };
            let absent_at = since.map(|since| since + self.absent_after);
            let standing = match absent_at {
                None => Standing::Closed,
                Some(at) if now >= at => Standing::Absent,
                Some(_) => Standing::Open,
            };
            open += usize::from(standing == Standing::Open);
            absent += usize::from(standing == Standing::Absent);
            present += usize::from(standing != Standing::Absent);
            health.standing.store(standing as u8, Ordering::Relaxed);
            let later = absent_at.filter(|_| standing == Standing::Open);
            next = next.into_iter().chain(later).chain(probe_at).min();
        }
        let cut_off = is_cut_off(self.is_cut_off(), open, present);
        self.cut_off.store(cut_off, Ordering::Relaxed);
        self.away.store(open + absent, Ordering::Relaxed);
        next
    }
}

/// A peer whose probe is due; `None` if it is not in use any more.
type Due = (Arc<PeerHealth>, Option<Arc<dyn Probe>>);

impl WatchedPeer {
    fn upgrade(&self) -> Due {
        (self.health.clone(), self.peer.upgrade())
    }
}

/// The time between two turns of the latencies.
const TURN: Duration = Duration::from_millis(500);

/// A wait without a known end is repeated after this time.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
