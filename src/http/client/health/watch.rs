//! The peers of a pool together: which are away or slow, whether this process is cut off, and the probes.

use std::sync::Weak;
use std::time::{Duration, Instant};

use super::breaker::is_cut_off;
use super::slowness::{TurnTimes, are_many_slow, slow_limit};
use super::{PeerHealth, ProbeAnswer, ProbeOf, Standing};
use crate::clock::saturating_nanos;
use crate::error::{Error, ErrorKind};
use crate::panics::caught;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Condvar, Mutex, spawn};

/// A peer that can be probed.
pub(crate) trait Probe: Send + Sync {
    /// Asks the peer whether it is alive.
    fn probe(&self, of: ProbeOf) -> Result<ProbeAnswer, Error>;

    /// The name of the peer in the log.
    fn name(&self) -> String;
}

/// Watches the peers of a pool while one of them is away or slow.
///
/// A breaker that opens, and a turn after which a peer is slow, call [`wake`](Self::wake). The lock of the
/// watch is taken after the breaker changed, so the last of several concurrent calls reads the last state of
/// each breaker. The thread ends under the same lock, once it reads that all breakers are closed and no peer
/// is slow. So a breaker that opens is either read by the thread, or starts another one.
pub(crate) struct Watch {
    /// How long a peer is down until it counts as absent.
    absent_after: Duration,
    /// The shortest time of answers that is slow.
    slow_after: Duration,
    /// The limit at the last turn, in nanoseconds.
    slow_limit: AtomicU64,
    /// The nodes in the list that are not closed. While there is none, picks read nothing else.
    away: AtomicUsize,
    cut_off: AtomicBool,
    /// Whether this process leaves the cluster. It counts as away then.
    is_leaving: AtomicBool,
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
    pub(crate) fn new(absent_after: Duration, slow_after: Duration) -> Arc<Self> {
        Arc::new(Watch {
            absent_after: absent_after.min(LONGEST_OUTAGE),
            slow_after,
            slow_limit: AtomicU64::new(saturating_nanos(slow_after)),
            away: AtomicUsize::new(0),
            cut_off: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
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

    /// Whether a node is away: a peer, or this process because it leaves.
    #[inline]
    pub(crate) fn is_any_away(&self) -> bool {
        self.away.load(Ordering::Relaxed) != 0
    }

    /// Whether this process is leaving, so that it owns no keys.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Gives up the keys of this process.
    pub(crate) fn leave(self: &Arc<Self>) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether so many peers are down that this process is the one that is cut off.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Called after an answer, and before a report: at least [`TURN`] after the last time, the latencies
    /// of all peers turn.
    #[inline]
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) {
        let now = saturating_nanos(now.saturating_duration_since(self.origin));
        let due = self.turn_at.load(Ordering::Relaxed);
        if now >= due {
            self.turn(now, due);
        }
    }

    #[cold]
    fn turn(self: &Arc<Self>, now: u64, due: u64) {
        let turn = saturating_nanos(TURN);
        let set =
            self.turn_at
                .compare_exchange(due, now + turn, Ordering::Relaxed, Ordering::Relaxed);
        if set.is_err() {
            // Another thread ends this turn.
            return;
        }
        let periods = 1 + u32::try_from((now - due) / turn).unwrap_or(u32::MAX - 1);
        let slow = self.find_slow(self.origin + Duration::from_nanos(now), periods);
        if slow.is_empty() {
            return;
        }
        for (health, peer) in slow {
            let cause = health.slowness.lock().cause().unwrap_or_default();
            // The program's logger may panic, and so may the drop of its transport, whose last use can be this.
            caught(move || {
                let name = peer.map_or_else(String::new, |peer| peer.name());
                log::warn!("peer {name} is slow: {cause}");
            });
        }
        self.wake();
    }

    /// Ends a turn. Returns the peers that are slow since now.
    fn find_slow(&self, now: Instant, periods: u32) -> Vec<Due> {
        let watched = self.watched.lock();
        let peers = &watched.peers;
        let times: Vec<TurnTimes> = peers
            .iter()
            .map(|peer| peer.health.latencies.turn(periods))
            .collect();
        let limit = slow_limit(&times, self.slow_after);
        let known = limit.unwrap_or(self.slow_after);
        self.slow_limit
            .store(saturating_nanos(known), Ordering::Relaxed);
        let turned = peers.iter().zip(times);
        let slow = turned.filter(|(peer, times)| {
            let mut slowness = peer.health.slowness.lock();
            match peer.health.standing() {
                Standing::Closed | Standing::Slow => slowness.on_turn(now, *times, limit),
                Standing::Open | Standing::Absent => {
                    slowness.skip_turn(now);
                    false
                }
            }
        });
        slow.map(|(peer, _)| peer.upgrade()).collect()
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
        let has_work = self.update(&watched, Instant::now()).has_work;
        let needs_thread = has_work && !watched.is_running && !watched.is_over;
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
            self.away
                .store(usize::from(self.is_leaving()), Ordering::Relaxed);
        }
    }

    fn spawn(self: &Arc<Self>) -> bool {
        let watch = self.clone();
        spawn("larder-probe", None, move || watch.run()).is_ok()
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.watched.lock().is_over = true;
        self.changed.notify_all();
    }

    /// The work of the thread.
    fn run(self: &Arc<Self>) {
        while let Some(due) = self.next_due() {
            for (of, (health, peer)) in due {
                let began = Instant::now();
                // A peer that is not in use any more needs no answer.
                let result = peer.map_or(Ok(ProbeAnswer::Present), |peer| {
                    // The peer is dropped within, too: its transport is code of the program.
                    let result = caught(move || peer.probe(of));
                    result.unwrap_or_else(|| Err(ErrorKind::Peer.into()))
                });
                let now = Instant::now();
                match of {
                    ProbeOf::Down => health.on_probe(now, result),
                    ProbeOf::Slow => {
                        let took = result.ok().map(|_| now - began);
                        let limit = Duration::from_nanos(self.slow_limit.load(Ordering::Relaxed));
                        health.slowness.lock().on_probe(began, now, took, limit);
                    }
                }
            }
            // End the turn here, because there may be no calls that would do so. Under loom, no step may depend
            // on the time.
            if !cfg!(larder_loom) {
                self.tick(Instant::now());
            }
        }
    }

    /// Waits for the next probes. `None` if the thread is to end.
    fn next_due(&self) -> Option<Vec<(ProbeOf, Due)>> {
        let mut watched = self.watched.lock();
        loop {
            let now = Instant::now();
            let Updated { has_work, next } = self.update(&watched, now);
            if watched.is_over || !has_work {
                watched.is_running = false;
                return None;
            }
            let due = watched.peers.iter();
            let due = due.filter_map(|peer| Some((peer.health.begin_probe(now)?, peer.upgrade())));
            let due: Vec<(ProbeOf, Due)> = due.collect();
            if !due.is_empty() {
                return Some(due);
            }
            let wait = next.map_or(LONGEST_WAIT, |at| at.saturating_duration_since(now));
            watched = self.changed.wait_timeout(watched, wait.max(SHORTEST_WAIT));
        }
    }

    /// Sets the standing of each peer and of this process.
    fn update(&self, watched: &Watched, now: Instant) -> Updated {
        let peers = &watched.peers;
        let states: Vec<Trouble> = peers.iter().map(|peer| Trouble::of(&peer.health)).collect();
        let slow = states.iter().filter(|state| state.is_slow).count();
        // This process is one of the nodes.
        let pass_over_slow = !are_many_slow(slow, peers.len() + 1);
        let (mut open, mut away, mut present) = (0, 0, 0);
        let mut next: Option<Instant> = None;
        for (WatchedPeer { health, .. }, state) in peers.iter().zip(&states) {
            let since = state.since.filter(|_| !state.is_slow || pass_over_slow);
            let until_absent = match state.is_planned {
                true => Duration::ZERO,
                false => self.absent_after,
            };
            let absent_at = since.map(|since| since + until_absent);
            let standing = match absent_at {
                None => Standing::Closed,
                Some(at) if now >= at => Standing::Absent,
                Some(_) if state.is_slow => Standing::Slow,
                Some(_) => Standing::Open,
            };
            open += usize::from(standing == Standing::Open);
            away += usize::from(standing != Standing::Closed);
            present += usize::from(standing != Standing::Absent);
            health.standing.store(standing as u8, Ordering::Relaxed);
            let later = absent_at.filter(|_| standing != Standing::Absent);
            next = next.into_iter().chain(later).chain(state.probe_at).min();
        }
        let cut_off = is_cut_off(self.is_cut_off(), open, present);
        self.cut_off.store(cut_off, Ordering::Relaxed);
        away += usize::from(self.is_leaving());
        self.away.store(away, Ordering::Relaxed);
        Updated {
            has_work: states.iter().any(|state| state.since.is_some()),
            next,
        }
    }
}

/// The result of an update.
struct Updated {
    /// Whether a peer is away or slow.
    has_work: bool,
    /// The time of the next change or probe.
    next: Option<Instant>,
}

/// Whether a peer is away or slow.
struct Trouble {
    since: Option<Instant>,
    is_slow: bool,
    /// Whether the peer announced that it leaves.
    is_planned: bool,
    probe_at: Option<Instant>,
}

impl Trouble {
    fn of(health: &PeerHealth) -> Trouble {
        let breaker = health.breaker.lock();
        if breaker.open_since().is_some() {
            return Trouble {
                since: breaker.open_since(),
                is_slow: false,
                is_planned: breaker.is_planned(),
                probe_at: breaker.probe_at(),
            };
        }
        drop(breaker);
        let slowness = health.slowness.lock();
        Trouble {
            since: slowness.slow_since(),
            is_slow: slowness.slow_since().is_some(),
            is_planned: false,
            probe_at: slowness.probe_at(),
        }
    }
}

/// A peer; `None` if it is not in use any more.
type Due = (Arc<PeerHealth>, Option<Arc<dyn Probe>>);

impl WatchedPeer {
    fn upgrade(&self) -> Due {
        (self.health.clone(), self.peer.upgrade())
    }
}

/// The time between two turns of the latencies.
const TURN: Duration = Duration::from_millis(500);

/// Ten years can be added to any `Instant`.
const LONGEST_OUTAGE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A wait without a known end is repeated after this time.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests;
