//! Loads several keys on several threads at the same time.

use std::cell::Cell;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::key::{Each, ManyFrom, ManyKey, OwnedKey};
use crate::context::{Context, OnCancel};
use crate::error::{Error, ErrorKind, Result};
use crate::group::load::client_load::ClientWaiter;
use crate::group::load::flight::{Executor, LoadFrom};
use crate::group::load::origin::HasWaited;
use crate::group::{Inner, Loaded};
use crate::panics::caught;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::threads::loader_pool::{BusyGuard, JobFor};
use crate::threads::recursion;

impl Inner {
    /// Loads each key as a single get does, up to [`PARALLEL_LOADS`] at the same time on loader threads.
    /// This thread takes part, and loads the first key, if `ctx` cannot end and there is no `waiter`.
    ///
    /// A call in a getter loads the keys one after the other instead: a getter that waits for itself is
    /// only detected on its own thread.
    pub(super) fn load_in_parallel(
        self: &Arc<Self>,
        ctx: &Context,
        keys: Vec<ManyKey<'_>>,
        waiter: Option<&mut dyn ClientWaiter>,
        each: &mut Each<'_>,
    ) {
        if let Some(ended) = ctx.err() {
            return keys.iter().for_each(|key| each(key.at, Err(ended.clone())));
        }
        if waiter.is_none() && (keys.len() == 1 || recursion::is_working()) {
            for key in keys {
                each(key.at, self.load_one(ctx, key, false));
            }
            return;
        }
        let takes_part = waiter.is_none() && Executor::for_getter(ctx) == Executor::Caller;
        let (sender, results) = unbounded();
        let queue = Arc::new(KeyQueue::new(&keys, usize::from(takes_part)));
        let mut waiting = Waiting::new(ctx, waiter, &sender);
        let started = self.start_workers(ctx, &queue, &sender, &mut waiting);
        drop(sender);
        let (mut is_done, left) = (vec![false; keys.len()], Cell::new(keys.len()));
        let mut note = |place: usize, result: Result<Loaded>| {
            is_done[place] = true;
            left.set(left.get() - 1);
            each(keys[place].at, result);
        };
        if takes_part {
            let mut place = 0;
            while let Some(key) = keys.get(place) {
                note(place, self.load_queued(ctx, &queue, *key, false));
                place = queue.next();
            }
        }
        if takes_part || started.is_ok() {
            while left.get() > 0 {
                let Some((place, result)) = waiting.next(&results) else {
                    break;
                };
                note(place, result);
            }
        }
        let ended = || {
            ctx.err()
                .unwrap_or_else(|| ErrorKind::DeadlineExceeded.into())
        };
        let error = started.err().unwrap_or_else(ended);
        let missing = keys.iter().zip(is_done).filter(|(_, is_done)| !is_done);
        missing.for_each(|(key, _)| each(key.at, Err(error.clone())));
    }

    /// Runs `ask` on a loader thread, and sends its result once the thread is idle.
    ///
    /// # Errors
    ///
    /// If no thread is free. Then `ask` is dropped.
    pub(in crate::group) fn ask_on_pool<T: Send + 'static>(
        &self,
        sender: &Sender<T>,
        ask: impl Fn() -> T + Send + 'static,
    ) -> Result<()> {
        let sender = sender.clone();
        self.pool.submit(JobFor::Own, move |busy| {
            let result = ask();
            drop(busy);
            // Fails if the caller has returned already.
            let _ = sender.send(result);
            drop(sender);
            ask
        })
    }

    /// Starts loader threads that load the keys of `queue`.
    ///
    /// # Errors
    ///
    /// If no thread could be started.
    fn start_workers(
        self: &Arc<Self>,
        ctx: &Context,
        queue: &Arc<KeyQueue>,
        sender: &Sender<WorkerMessage>,
        waiting: &mut Waiting<'_, '_>,
    ) -> Result<()> {
        // More threads than permits would only wait.
        let permits = self.permits.as_ref().map_or(usize::MAX, |p| p.max());
        let most = queue.len().min(PARALLEL_LOADS).min(permits);
        for started in 0..most {
            let submitted = job_for(&mut waiting.waiter).and_then(|job_for| {
                let job_for = match job_for {
                    // One thread is enough, so the others are not waited for.
                    JobFor::Client(guard, _) if started > 0 => {
                        JobFor::Client(guard, Instant::now())
                    }
                    job_for => job_for,
                };
                let (group, ctx, queue, sender) =
                    (self.clone(), ctx.clone(), queue.clone(), sender.clone());
                self.pool.submit(job_for, move |busy| {
                    group.work(&ctx, &queue, &sender, busy);
                    drop(sender);
                    (group, ctx, queue)
                })
            });
            match submitted {
                Err(refused) if started == 0 => return Err(refused),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Loads keys of `queue` on this loader thread until none is left, or the caller has returned.
    fn work(
        self: &Arc<Self>,
        ctx: &Context,
        queue: &KeyQueue,
        sender: &Sender<WorkerMessage>,
        busy: BusyGuard<'_>,
    ) {
        let mut busy = Some(busy);
        let mut place = queue.next();
        while let Some(key) = queue.key(place) {
            let result = caught(|| self.load_queued(ctx, queue, key, true));
            let result = result.unwrap_or_else(|| Err(ErrorKind::GetterPanicked.into()));
            let done = std::mem::replace(&mut place, queue.next());
            if queue.key(place).is_none() {
                // The thread is idle before its last result is published: see `BusyGuard`.
                drop(busy.take());
            }
            if sender.send(Some((done, result))).is_err() {
                return;
            }
        }
    }

    /// Loads a key of `queue`. If one of them got no permit, the others do not wait for one.
    fn load_queued(
        self: &Arc<Self>,
        ctx: &Context,
        queue: &KeyQueue,
        key: ManyKey<'_>,
        on_loader_thread: bool,
    ) -> Result<Loaded> {
        let has_waited = queue.was_refused.load(Ordering::Relaxed);
        let has_waited = has_waited.then(|| ctx.with_value(HasWaited));
        let result = self.load_one(has_waited.as_ref().unwrap_or(ctx), key, on_loader_thread);
        let is_refused = |error: &Error| error.kind() == ErrorKind::Overloaded;
        let waits = self.permits.is_some() && ctx.deadline().is_none();
        if waits && result.as_ref().is_err_and(is_refused) {
            queue.was_refused.store(true, Ordering::Relaxed);
        }
        result
    }

    fn load_one(
        self: &Arc<Self>,
        ctx: &Context,
        ManyKey { key, from, .. }: ManyKey<'_>,
        on_loader_thread: bool,
    ) -> Result<Loaded> {
        let from = match from {
            ManyFrom::Peers => {
                self.check_key(key.key)?;
                self.check_failed_loads(&key)?;
                self.source_of(&key)
            }
            ManyFrom::Getter(placement) => LoadFrom::Getter(placement),
        };
        let executor = match on_loader_thread {
            true => Executor::LoaderThread,
            false => from.executor(ctx),
        };
        self.load_once(&from, executor, ctx, &key, None)
    }
}

/// The next result; `None` once all have arrived or failed, or the deadline has passed.
pub(in crate::group) fn next_by<T>(ctx: &Context, results: &Receiver<T>) -> Option<T> {
    match ctx.deadline() {
        None => results.recv().ok(),
        Some(deadline) => results.recv_deadline(deadline).ok(),
    }
}

/// The caller of a job that loads for `waiter`, or else for this process.
pub(super) fn job_for(waiter: &mut Option<&mut dyn ClientWaiter>) -> Result<JobFor> {
    match waiter {
        None => Ok(JobFor::Own),
        Some(waiter) => {
            let guard = waiter.start()?;
            Ok(JobFor::Client(guard, waiter.thread_by()))
        }
    }
}

/// The most loader threads that load keys of one call with a getter that loads them one by one. More
/// would help a slow getter, but leave fewer for other callers.
const PARALLEL_LOADS: usize = 16;

/// The keys that several threads load.
struct KeyQueue {
    keys: Vec<OwnedKey>,
    /// The place of the next key that no thread has taken. It can be past the end.
    next: AtomicUsize,
    was_refused: AtomicBool,
}

impl KeyQueue {
    /// A queue of `keys`, of which the first `taken` are taken.
    fn new(keys: &[ManyKey<'_>], taken: usize) -> Self {
        KeyQueue {
            keys: keys.iter().map(OwnedKey::from).collect(),
            next: AtomicUsize::new(taken),
            was_refused: AtomicBool::new(false),
        }
    }

    /// The number of keys that no thread has taken.
    fn len(&self) -> usize {
        let taken = self.next.load(Ordering::Relaxed);
        self.keys.len().saturating_sub(taken)
    }

    fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn key(&self, place: usize) -> Option<ManyKey<'_>> {
        self.keys.get(place).map(OwnedKey::borrow)
    }
}

/// The place of a key in the queue and its result; `None` wakes the caller, whose context was
/// cancelled.
type WorkerMessage = Option<(usize, Result<Loaded>)>;

/// How the caller of [`load_in_parallel`](Inner::load_in_parallel) waits for its loader threads.
struct Waiting<'c, 'w> {
    ctx: &'c Context,
    waiter: Option<&'w mut dyn ClientWaiter>,
    /// The end of the waiter's step.
    step: Option<Instant>,
    _wake: Option<OnCancel>,
}

impl<'c, 'w> Waiting<'c, 'w> {
    fn new(
        ctx: &'c Context,
        waiter: Option<&'w mut dyn ClientWaiter>,
        sender: &Sender<WorkerMessage>,
    ) -> Self {
        let wake = || {
            let sender = sender.clone();
            // Fails if the caller has returned already.
            ctx.on_cancel(move || drop(sender.send(None)))
        };
        Waiting {
            ctx,
            waiter,
            step: None,
            _wake: ctx.cancellable().then(wake),
        }
    }

    /// The next result; `None` if the caller is to return.
    fn next(&mut self, results: &Receiver<WorkerMessage>) -> Option<(usize, Result<Loaded>)> {
        loop {
            let until = match (&mut self.waiter, self.step) {
                (None, _) => self.ctx.deadline(),
                (Some(_), Some(step)) => Some(step),
                (Some(waiter), None) => Some(waiter.next_step()?),
            };
            self.step = until;
            let message = match until {
                None => results.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => results.recv_deadline(until),
            };
            match message {
                Ok(Some(result)) => return Some(result),
                Err(RecvTimeoutError::Timeout) if self.waiter.is_some() => self.step = None,
                // Woken by a cancellation.
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
