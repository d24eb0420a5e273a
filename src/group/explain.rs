//! Explains what a get of a key would do, without doing it.

use std::fmt;
use std::time::Duration;

use super::answer::Source;
use super::freshness::Phase;
use super::removal_clocks::KeyStripe;
use super::{Group, Inner};
use crate::error::Error;
use crate::peers::{KeyRoute, Route};

/// The way that a get of a key would take, and why; the result of [`Group::explain`].
///
/// Its text has a line for each part that is known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The key.
    pub key: String,
    /// The owner of the key by the list of peers, the next node for it, and why another one is asked in the
    /// place of the owner.
    pub route: KeyRoute,
    /// Where the value is cached in this process: [`Source::Main`], [`Source::Hot`] or [`Source::Stale`].
    pub cached: Option<Source>,
    /// The time since the load of the cached value began, if it is known.
    pub age: Option<Duration>,
    /// The time until the end of the cached value's time to live. `None` if there is none.
    pub expires_in: Option<Duration>,
    /// The time since the last removal that this process has applied to the key, or to another key of its
    /// stripe. A stripe has about one key in a thousand. `None` if there was no such removal.
    pub last_removal: Option<Duration>,
    /// The step that a get would take now.
    pub outcome: GetOutcome,
}

/// The step that a get would take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GetOutcome {
    /// Return the cached value.
    Cached,
    /// Return the cached value, and load a newer one in the background.
    CachedAndRefresh,
    /// Ask the peer with this URL, and run the getter here if neither it nor the next one answers.
    Peer(String),
    /// Ask the previous owner, at this URL, whether it has the value cached, and run the getter here if not.
    PreviousOwner(String),
    /// Run the getter here. The value is kept for its full life.
    Getter,
    /// Run the getter here, in place of a peer that owns the key. The value is kept for 10 s.
    Fallback,
    /// Fail with this error, because the key is not valid, or because its last load failed with it.
    Fail(Error),
}

impl Group {
    /// Explains what a get of `key` would do at this moment, and why: its owner, the next node, and which of
    /// them would be asked; where it is cached here, its age and what is left of its life.
    ///
    /// It loads nothing, asks no peer, counts nothing, and is not a use that protects an entry from
    /// eviction. A concurrent change may make the answer old before it is read.
    ///
    /// The server of a pool answers `GET {base path}{group}/{key}?explain` with the text, to this machine and
    /// to the peers in the list.
    ///
    /// ```
    /// use larder::{GetOutcome, Registry, getter_fn};
    /// # let colors = Registry::new().new_group("colors", 1 << 20, getter_fn(|_, name, dest| Ok(dest.set_str(name)?)))?;
    ///
    /// assert!(matches!(colors.explain("red").outcome, GetOutcome::Getter));
    /// colors.get("red")?;
    /// assert!(matches!(colors.explain("red").outcome, GetOutcome::Cached));
    /// println!("{}", colors.explain("red"));
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn explain(&self, key: &str) -> Explanation {
        let inner = &self.inner;
        let place = inner.key(key);
        let now = inner.store.clock().now();
        let hit = inner.store.peek(place.hash, key).ok();
        let share = hit.as_ref().map(|hit| hit.share);
        let lifetime = hit.map(|hit| inner.loaded(hit).lifetime);
        let phase = lifetime.as_ref().map(|lifetime| inner.phase(lifetime));
        let cached = share.zip(phase).map(|(share, phase)| match phase {
            Phase::Stale => Source::Stale,
            Phase::Fresh | Phase::Refresh => share.into(),
        });
        // Until the next attempt, an old value is served.
        let has_failed = || (inner.failed_loads.recent(&place, inner.store.clock())).is_some();
        let outcome = match phase {
            Some(Phase::Fresh) => GetOutcome::Cached,
            Some(Phase::Refresh | Phase::Stale) if has_failed() => GetOutcome::Cached,
            Some(Phase::Refresh) => GetOutcome::CachedAndRefresh,
            Some(Phase::Stale) | None => inner.outcome_of_load(key),
        };
        let picker = inner.peers.picker(&inner.name);
        let route = picker.map(|picker| picker.explain(key));
        Explanation {
            key: key.to_owned(),
            route: route.unwrap_or_default(),
            cached,
            age: lifetime
                .and_then(|lifetime| lifetime.begun)
                .map(|begun| now.since(begun)),
            expires_in: lifetime
                .and_then(|lifetime| lifetime.fresh_until)
                .map(|end| end.since(now)),
            last_removal: inner.removals.since_removal(KeyStripe::of(key), now),
            outcome,
        }
    }
}

impl Inner {
    fn outcome_of_load(&self, key: &str) -> GetOutcome {
        let checked = self.check_key(key);
        if let Err(error) = checked.and_then(|()| self.check_failed_loads(&self.key(key))) {
            return GetOutcome::Fail(error);
        }
        match self.peers.route(&self.name, key) {
            Route::Peer(peer) => GetOutcome::Peer(peer.url()),
            Route::Fallback => GetOutcome::Fallback,
            Route::Own => {
                let picker = self.peers.picker(&self.name);
                let previous = picker.and_then(|picker| picker.previous_owner(key));
                previous.map_or(GetOutcome::Getter, |peer| {
                    GetOutcome::PreviousOwner(peer.url())
                })
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key: {:?}", self.key)?;
        let named = [("owner", &self.route.owner), ("next", &self.route.next)];
        for (name, url) in named {
            if let Some(url) = url {
                writeln!(f, "{name}: {url}")?;
            }
        }
        for reason in &self.route.reasons {
            writeln!(f, "because: {reason}")?;
        }
        match self.cached {
            Some(source) => writeln!(f, "cached: {source:?}")?,
            None => writeln!(f, "cached: no")?,
        }
        let times = [
            ("age", self.age),
            ("expires in", self.expires_in),
            ("last removal", self.last_removal),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                // 64 bits: nothing else in the program prints more.
                writeln!(f, "{name}: {} ms", time.as_millis() as u64)?;
            }
        }
        writeln!(f, "get: {}", self.outcome)
    }
}

impl fmt::Display for GetOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GetOutcome::Cached => f.write_str("returns the cached value"),
            GetOutcome::CachedAndRefresh => {
                f.write_str("returns the cached value and refreshes it")
            }
            GetOutcome::Peer(url) => write!(f, "asks {url}"),
            GetOutcome::PreviousOwner(url) => {
                write!(
                    f,
                    "takes the value over from {url}, or runs the getter here"
                )
            }
            GetOutcome::Getter => f.write_str("runs the getter here"),
            GetOutcome::Fallback => f.write_str("runs the getter here in place of the owner"),
            GetOutcome::Fail(error) => write!(f, "fails: {error}"),
        }
    }
}
