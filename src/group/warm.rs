//! Warming: loads keys in the background before callers ask for them.

use std::fmt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::load::flight::LoadFrom;
use super::load::populate::Placement;
use super::many::bulk::Lead;
use super::many::key::{ManyFrom, ManyKey};
use super::{Group, Inner, Loaded};
use crate::context::{CancelHandle, Context};
use crate::error::{Error, ErrorKind, Result};
use crate::panics::caught;
use crate::peers::Route;
use crate::sync::{Arc, Mutex, spawn_plain};
use crate::threads::load_permits::{LoadClass, LoadPermit, Urgency};
use crate::threads::nesting;

/// How far a [`Warming`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmProgress {
    /// The keys that were given.
    pub total: usize,
    /// The keys that are done: the sum of `loaded`, `skipped` and `failed`.
    pub done: usize,
    /// The keys whose values were loaded.
    pub loaded: usize,
    /// The keys that are cached or being loaded already, those that other processes own, and those that are
    /// too long.
    pub skipped: usize,
    /// The keys whose load failed. A key that does not exist counts here.
    pub failed: usize,
    /// Whether the warming ended because the cache is full.
    pub is_full: bool,
}

/// A warming under way: see [`Group::warm`]. Dropping it does not end the warming.
pub struct Warming {
    work: Arc<WarmWork>,
    threads: Vec<JoinHandle<()>>,
    cancel: CancelHandle,
}

impl Warming {
    /// How far it is.
    pub fn progress(&self) -> WarmProgress {
        self.work.state.lock().progress
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Ends the warming: no other load begins. The loads under way are completed, and their contexts are
    /// cancelled.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits for the end. The progress callback must not call this.
    pub fn join(self) -> WarmProgress {
        let _lent = nesting::lend_permit(&Context::background());
        for thread in self.threads {
            // It does not panic: it catches the panics of user code.
            let _ = thread.join();
        }
        self.work.state.lock().progress
    }
}

impl fmt::Debug for Warming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming")
            .field("progress", &self.progress())
            .field("is_finished", &self.is_finished())
            .finish()
    }
}

impl Group {
    /// Loads keys in the background, so that the first callers find them cached, for example after a start.
    /// Returns at once.
    ///
    /// Keys that another process owns are skipped: each process warms its own. So are keys that are cached.
    /// Up to 16 loads run at the same time, on threads of their own. With a
    /// [bulk getter](crate::GroupBuilder::build_bulk), up to 128 keys are one load. With
    /// [`max_concurrent_loads`](crate::GroupBuilder::max_concurrent_loads), these loads count, and each of
    /// them waits until no caller's load waits.
    ///
    /// No entry is evicted for a warmed one: a value for which there is no room is not cached, and the
    /// warming ends when the cache is full. So give the most important keys first. A value whose key is
    /// removed while it is loaded is not cached. A caller of a key that is being warmed waits for that load.
    ///
    /// `progress` is called after each load, by one thread at a time. A panic of it is discarded.
    ///
    /// ```
    /// # use larder::{Group, Registry};
    /// # let registry = Registry::new();
    /// let colors = Group::builder("colors")
    ///     # .registry(&registry)
    ///     .build_with(|_ctx, name| Ok::<_, larder::Error>(format!("the color {name}")))?;
    /// let keys = vec!["red".to_owned(), "green".to_owned()];
    /// let warming = colors.warm(keys, |p| println!("{} of {}", p.done, p.total))?;
    /// assert_eq!(warming.join().loaded, 2);
    /// assert!(colors.contains_key("red"));
    /// # Ok::<(), larder::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the system starts no thread.
    pub fn warm(
        &self,
        keys: Vec<String>,
        progress: impl FnMut(WarmProgress) + Send + 'static,
    ) -> Result<Warming> {
        let inner = &self.inner;
        let batch = match inner.bulk_getter {
            Some(_) => BULK_KEYS,
            None => 1,
        };
        let permits = inner.permits.as_ref().map_or(usize::MAX, |p| p.max());
        let loads = keys.len().div_ceil(batch);
        let progress_now = WarmProgress {
            total: keys.len(),
            ..WarmProgress::default()
        };
        let work = Arc::new(WarmWork {
            keys,
            batch,
            state: Mutex::new(WarmState {
                next: 0,
                progress: progress_now,
            }),
            callback: Mutex::new(Box::new(progress)),
        });
        let (ctx, cancel) = Context::background().with_cancel();
        let mut warming = Warming {
            work,
            threads: Vec::new(),
            cancel,
        };
        for _ in 0..loads.min(WARM_THREADS).min(permits) {
            let (group, work, ctx) = (self.clone(), warming.work.clone(), ctx.clone());
            let spawned = spawn_plain("larder-warm", None, move || {
                while group.inner.warm_next(&work, &ctx) {}
                // Drops may run user code.
                caught(move || drop((group, work, ctx)));
            });
            match spawned {
                Ok(thread) => warming.threads.push(thread),
                // The threads that have started do the work.
                Err(_) if !warming.threads.is_empty() => break,
                Err(error) => {
                    let message = "no thread for the warming";
                    return Err(Error::with_source(ErrorKind::Io, message, error));
                }
            }
        }
        Ok(warming)
    }
}

/// The work of a warming, which its threads share.
struct WarmWork {
    keys: Vec<String>,
    /// The keys of one load.
    batch: usize,
    state: Mutex<WarmState>,
    /// Called under its lock, so that calls do not overlap. No other lock is held.
    callback: Mutex<Box<dyn FnMut(WarmProgress) + Send>>,
}

struct WarmState {
    /// The index of the next key.
    next: usize,
    progress: WarmProgress,
}

/// The results of one load.
#[derive(Default)]
struct Warmed {
    loaded: usize,
    skipped: usize,
    failed: usize,
    is_full: bool,
}

impl WarmWork {
    /// The next keys; `None` at the end.
    fn take(&self) -> Option<&[String]> {
        let mut state = self.state.lock();
        if state.progress.is_full || state.next == self.keys.len() {
            return None;
        }
        let start = state.next;
        state.next = (start + self.batch).min(self.keys.len());
        Some(&self.keys[start..state.next])
    }

    fn note(&self, warmed: &Warmed) {
        let mut callback = self.callback.lock();
        let progress = {
            let progress = &mut self.state.lock().progress;
            progress.loaded += warmed.loaded;
            progress.skipped += warmed.skipped;
            progress.failed += warmed.failed;
            progress.done += warmed.loaded + warmed.skipped + warmed.failed;
            progress.is_full |= warmed.is_full;
            *progress
        };
        caught(|| callback(progress));
    }
}

impl Inner {
    /// Loads the next keys. False if there are none, or the warming was cancelled.
    fn warm_next(self: &Arc<Self>, work: &WarmWork, ctx: &Context) -> bool {
        let keys = match work.take() {
            Some(keys) if !ctx.is_cancelled() => keys,
            _ => return false,
        };
        let (mut missing, mut warmed) = (Vec::new(), Warmed::default());
        for key in keys {
            let is_missing = || {
                self.check_key(key).is_ok()
                    && matches!(self.peers.route(&self.name, key), Route::Own)
                    && self.store.peek(self.store.hash(key), key).is_err()
            };
            // The program's picker may panic.
            match caught(is_missing) {
                Some(true) => missing.push(key),
                Some(false) => warmed.skipped += 1,
                None => warmed.failed += 1,
            }
        }
        if !missing.is_empty() {
            let Some(permit) = self.permit_warm(ctx) else {
                return false;
            };
            let _held = permit.map(nesting::hold_permit);
            self.warm_keys(&missing, ctx, &mut warmed);
        }
        work.note(&warmed);
        true
    }

    /// A permit for a load that no caller waits for. The outer `None` if the warming was cancelled before.
    /// A flight begins only afterwards, so no caller joins one that waits behind all others.
    #[expect(clippy::option_option, reason = "there may be no limit")]
    fn permit_warm(&self, ctx: &Context) -> Option<Option<LoadPermit>> {
        let Some(permits) = &self.permits else {
            return Some(None);
        };
        let mut queued = permits.queue(LoadClass::Own, Urgency::Background);
        while !ctx.is_cancelled() {
            let permit = queued.wait(Instant::now() + WAIT_STEP, ctx);
            if permit.is_some() {
                return Some(permit);
            }
        }
        None
    }

    /// Loads these keys, except those that other callers load.
    fn warm_keys(self: &Arc<Self>, keys: &[&String], ctx: &Context, warmed: &mut Warmed) {
        let keys = keys.iter().enumerate().map(|(at, key)| ManyKey {
            at,
            key: self.key(key),
            from: ManyFrom::Getter(Placement::Warm),
        });
        let keys: Vec<ManyKey<'_>> = keys.collect();
        let (leads, others) = self.lead_all(ctx, &keys, &mut |_, _| ());
        warmed.skipped += keys.len() - leads.len();
        drop(others);
        let led = leads.len();
        let loaded = match &self.bulk_getter {
            Some(bulk) if led > 1 => {
                let run = caught(|| self.run_bulk(&*bulk.getter, leads, None, ctx));
                run.unwrap_or_default()
            }
            _ => leads
                .into_iter()
                .filter_map(|lead| self.warm_one(lead, ctx))
                .collect(),
        };
        let loaded = loaded.iter().filter_map(|(at, result)| {
            let loaded = result.as_ref().ok()?;
            Some((keys[*at], loaded.view.len()))
        });
        let before = warmed.loaded;
        for (key, len) in loaded {
            warmed.loaded += 1;
            let is_kept = self.store.peek(key.key.hash, key.key.key).is_ok();
            warmed.is_full |= !is_kept && self.is_full_for(key.key.key.len() + len);
        }
        warmed.failed += led - (warmed.loaded - before);
    }

    /// The index of the key and its result; `None` if the getter panicked.
    fn warm_one(
        self: &Arc<Self>,
        Lead {
            key,
            leader,
            mut begun,
        }: Lead<'_, '_>,
        ctx: &Context,
    ) -> Option<(usize, Result<Loaded>)> {
        let from = LoadFrom::Getter(Placement::Warm);
        let run = || self.lead(&from, leader, None, ctx, &key.key, &mut begun);
        let result = caught(run)??;
        Some((key.at, result))
    }

    /// Whether there is no room for an entry of this length, and not because it is large.
    fn is_full_for(&self, len: usize) -> bool {
        let capacity = self.store.capacity();
        capacity == 0 || !self.store.has_room(len) && self.store.used() >= capacity / 8 * 7
    }
}

/// The most keys of one call of a bulk getter.
const BULK_KEYS: usize = 128;

/// The most loads at the same time, as of `Group::get_many`.
const WARM_THREADS: usize = 16;

/// The longest single wait for a permit. A cancellation ends it earlier.
const WAIT_STEP: Duration = Duration::from_secs(3600);
