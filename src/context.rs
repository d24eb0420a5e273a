//! Contexts: the scope of one request.

use std::any::Any;
use std::fmt;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::panics::FirstPanic;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};

/// The scope of one request: a deadline, cancellation, and typed values.
///
/// A context is immutable; the `with_` methods make children. A child ends no later than its parent,
/// is cancelled with it, and has its values. Cloning adds one reference, and [`Context::background`]
/// allocates nothing. Contexts may nest to any depth: neither the methods nor the drop recurse.
///
/// ```
/// use larder::Context;
/// use std::time::Duration;
///
/// struct RequestId(u64);
///
/// let ctx = Context::background()
///     .with_value(RequestId(7))
///     .with_timeout(Duration::from_millis(200));
/// assert_eq!(ctx.value::<RequestId>().map(|id| id.0), Some(7));
/// assert!(ctx.remaining().is_some_and(|left| left <= Duration::from_millis(200)));
/// ```
#[derive(Clone, Default)]
pub struct Context {
    node: Option<Arc<ContextNode>>,
}

/// The change that one `with_` method makes.
struct ContextNode {
    parent: Context,
    /// The earliest deadline from here to the root.
    deadline: Option<Instant>,
    /// Whether this node or one above it can be cancelled.
    cancellable: bool,
    cancel: Option<Arc<CancelState>>,
    value: Option<Box<dyn Any + Send + Sync>>,
}

impl Context {
    /// The context without deadline, cancellation or values.
    pub const fn background() -> Self {
        Context { node: None }
    }

    /// A child that ends `timeout` from now. If the clock cannot represent that time, the child has
    /// only its parent's deadline.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Context {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.with_deadline(deadline),
            None => self.clone(),
        }
    }

    /// A child that ends at `deadline`, or with its parent if that is earlier.
    #[must_use]
    pub fn with_deadline(&self, deadline: Instant) -> Context {
        let deadline = self.deadline().map_or(deadline, |own| own.min(deadline));
        self.child(|node| node.deadline = Some(deadline))
    }

    /// A child, and the handle whose [`cancel`](CancelHandle::cancel) ends it.
    #[must_use]
    pub fn with_cancel(&self) -> (Context, CancelHandle) {
        let state = Arc::new(CancelState::default());
        let ctx = self.child(|node| {
            node.cancellable = true;
            node.cancel = Some(state.clone());
        });
        (ctx, CancelHandle { state })
    }

    /// A child with `value`, which [`value`](Self::value) finds by its type. It hides a value of the
    /// same type in the parents.
    #[must_use]
    pub fn with_value<T: Any + Send + Sync>(&self, value: T) -> Context {
        self.child(|node| node.value = Some(Box::new(value)))
    }

    /// The deadline of the request, if it has one.
    pub fn deadline(&self) -> Option<Instant> {
        self.node.as_ref()?.deadline
    }

    /// The time until the deadline: `None` without a deadline, zero once it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The nearest value of type `T`. Takes time in proportion to the number of contexts in between.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.nodes()
            .find_map(|node| node.value.as_ref()?.downcast_ref())
    }

    /// Whether the request was cancelled. Ignores the deadline.
    pub fn is_cancelled(&self) -> bool {
        self.cancellable() && self.cancels().any(|state| state.is_cancelled())
    }

    /// The reason to stop the request now, or `None` to continue.
    ///
    /// Long loads should check this between steps.
    pub fn err(&self) -> Option<Error> {
        if self.is_cancelled() {
            return Some(ErrorKind::Cancelled.into());
        }
        let deadline = self.deadline()?;
        (Instant::now() >= deadline).then(|| ErrorKind::DeadlineExceeded.into())
    }

    /// A child that ends at `deadline`, whose [loads](Self::of_load) go on until `load_deadline`.
    #[cfg(feature = "http")]
    pub(crate) fn with_deadlines(&self, deadline: Instant, load_deadline: Instant) -> Context {
        let of_load = self.with_deadline(load_deadline);
        of_load.child(|node| {
            node.deadline = node.deadline.min(Some(deadline));
            node.value = Some(Box::new(LoadContext(of_load.clone())));
        })
    }

    /// The context for a load that this request begins.
    pub(crate) fn of_load(&self) -> &Context {
        self.value().map_or(self, |LoadContext(ctx)| ctx)
    }

    /// Whether a deadline or a cancellation can end this request.
    pub(crate) fn has_deadline_or_cancel(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| node.deadline.is_some() || node.cancellable)
    }

    pub(crate) fn cancellable(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.cancellable)
    }

    /// Calls `callback` when the request is cancelled, or at once if it was cancelled already. If
    /// several contexts of the chain are cancelled, it is called for each. Dropping the guard
    /// unregisters the callback. A cancellation that is under way on another thread may still call
    /// it.
    ///
    /// The callback runs on the thread that cancels, or on this thread if the request was cancelled
    /// already. No lock of the context is held.
    pub(crate) fn on_cancel(&self, callback: impl Fn() + Send + Sync + 'static) -> OnCancel {
        let callback: CancelCallback = Arc::new(callback);
        let states: Vec<_> = self.cancels().cloned().collect();
        for state in &states {
            state.subscribe(&callback);
        }
        OnCancel { callback, states }
    }

    fn child(&self, change: impl FnOnce(&mut ContextNode)) -> Context {
        let mut node = ContextNode {
            parent: self.clone(),
            deadline: self.deadline(),
            cancellable: self.cancellable(),
            cancel: None,
            value: None,
        };
        change(&mut node);
        Context {
            node: Some(Arc::new(node)),
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &ContextNode> {
        std::iter::successors(self.node.as_deref(), |node| node.parent.node.as_deref())
    }

    fn cancels(&self) -> impl Iterator<Item = &Arc<CancelState>> {
        self.nodes().filter_map(|node| node.cancel.as_ref())
    }
}

/// The context of the loads that a request begins, which may outlast the request.
#[cfg_attr(
    not(feature = "http"),
    allow(dead_code, reason = "only servers set it")
)]
struct LoadContext(Context);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("remaining", &self.remaining())
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

/// Drops a chain in a loop, because recursion could overflow the stack. If the drop of a value
/// panics, the values above it are dropped all the same.
impl Drop for ContextNode {
    fn drop(&mut self) {
        let mut panic = FirstPanic::default();
        let (mut value, mut parent) = (self.value.take(), self.parent.node.take());
        loop {
            panic.catch(|| drop(value));
            let Some(mut node) = parent.and_then(Arc::into_inner) else {
                break;
            };
            (value, parent) = (node.value.take(), node.parent.node.take());
        }
        panic.resume();
    }
}

/// Cancels the context that [`Context::with_cancel`] returned with it, and that context's children.
///
/// Dropping the handle cancels nothing. It may cancel on any thread, any number of times.
#[derive(Clone)]
pub struct CancelHandle {
    state: Arc<CancelState>,
}

impl CancelHandle {
    /// Ends the request: callers that wait return with [`ErrorKind::Cancelled`].
    pub fn cancel(&self) {
        for callback in self.state.cancel() {
            callback();
        }
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelHandle")
            .field("cancelled", &self.state.is_cancelled())
            .finish()
    }
}

type CancelCallback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct CancelState {
    /// Set under the lock of `callbacks`. Read with or without it.
    cancelled: AtomicBool,
    callbacks: Mutex<Vec<CancelCallback>>,
}

impl CancelState {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Marks the request as cancelled, and returns the callbacks to call.
    fn cancel(&self) -> Vec<CancelCallback> {
        let mut callbacks = self.callbacks.lock();
        self.cancelled.store(true, Ordering::Release);
        std::mem::take(&mut callbacks)
    }

    /// Registers `callback`, or calls it if `cancel` came first. `cancel` sets `cancelled` and takes
    /// the callbacks under one lock, so it cannot miss a callback that is registered at the same
    /// time.
    fn subscribe(&self, callback: &CancelCallback) {
        let mut callbacks = self.callbacks.lock();
        if self.is_cancelled() {
            drop(callbacks);
            callback();
        } else {
            callbacks.push(callback.clone());
        }
    }
}

/// Keeps a callback of [`Context::on_cancel`] registered.
#[must_use]
pub(crate) struct OnCancel {
    callback: CancelCallback,
    states: Vec<Arc<CancelState>>,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        for state in &self.states {
            // `self` holds the callback too, so it is not dropped under the lock.
            let mut callbacks = state.callbacks.lock();
            callbacks.retain(|other| !Arc::ptr_eq(other, &self.callback));
        }
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn child_ends_no_later_than_its_parent() {
        let parent = Context::background().with_timeout(Duration::from_secs(1));
        let child = parent.with_timeout(Duration::from_secs(60));
        assert_eq!(child.deadline(), parent.deadline());
        let short = parent.with_timeout(Duration::ZERO);
        assert_eq!(
            short.err().map(|e| e.kind()),
            Some(ErrorKind::DeadlineExceeded)
        );
        assert!(parent.err().is_none());
    }

    #[test]
    fn values_are_found_by_type_and_the_nearest_wins() {
        let ctx = Context::background()
            .with_value(1_u32)
            .with_value("name")
            .with_value(2_u32);
        assert_eq!(ctx.value::<u32>(), Some(&2));
        assert_eq!(ctx.value::<&str>(), Some(&"name"));
        assert_eq!(ctx.value::<u64>(), None);
    }

    #[test]
    fn cancellation_reaches_children_and_not_parents() {
        let (parent, _keep) = Context::background().with_cancel();
        let (ctx, handle) = parent.with_cancel();
        let child = ctx.with_value(1).with_timeout(Duration::from_secs(60));
        assert!(child.err().is_none());
        handle.cancel();
        assert_eq!(child.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
        assert!(!parent.is_cancelled());
    }

    #[test]
    fn callback_runs_once_and_not_after_its_guard_is_dropped() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = |calls: &Arc<AtomicUsize>| {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, SeqCst);
            }
        };
        let (ctx, handle) = Context::background().with_cancel();
        drop(ctx.on_cancel(count(&calls)));
        let kept = ctx.on_cancel(count(&calls));
        handle.cancel();
        handle.cancel();
        assert_eq!(calls.load(SeqCst), 1);
        drop(kept);
        let _late = ctx.on_cancel(count(&calls));
        assert_eq!(calls.load(SeqCst), 2);
    }

    #[test]
    fn timeout_beyond_the_clock_is_no_deadline() {
        let ctx = Context::background().with_timeout(Duration::MAX);
        assert!(ctx.deadline().is_none());
    }
}
