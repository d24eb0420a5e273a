//! What travels with one request: a deadline, cancellation, and typed values.

use std::any::{Any, TypeId};
use std::fmt;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};

/// The circumstances of one request, in the sense of Go's `context.Context`.
///
/// A context is immutable; the `with_` methods make children. A child ends no later than its
/// parent, is cancelled with it, and sees its values. Cloning costs one reference count, and
/// [`Context::background`] costs nothing.
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
    node: Option<Arc<Node>>,
}

struct Node {
    parent: Context,
    /// The earliest deadline from here to the root.
    deadline: Option<Instant>,
    /// Whether this node or one above it can be cancelled.
    cancellable: bool,
    kind: NodeKind,
}

enum NodeKind {
    Deadline,
    Cancel(Arc<CancelState>),
    Value(TypeId, Box<dyn Any + Send + Sync>),
}

impl Context {
    /// The context without deadline, cancellation or values.
    pub const fn background() -> Self {
        Context { node: None }
    }

    /// A child that ends `timeout` from now. A timeout too long for the clock is no deadline.
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
        self.child(Some(deadline), self.cancellable(), NodeKind::Deadline)
    }

    /// A child that `CancelHandle::cancel` ends, and the handle to do it with.
    #[must_use]
    pub fn with_cancel(&self) -> (Context, CancelHandle) {
        let state = Arc::new(CancelState::default());
        let ctx = self.child(self.deadline(), true, NodeKind::Cancel(state.clone()));
        (ctx, CancelHandle { state })
    }

    /// A child that carries `value`, found by its type. It hides a value of the same type above.
    #[must_use]
    pub fn with_value<T: Any + Send + Sync>(&self, value: T) -> Context {
        let kind = NodeKind::Value(TypeId::of::<T>(), Box::new(value));
        self.child(self.deadline(), self.cancellable(), kind)
    }

    /// When the request ends, if it does.
    pub fn deadline(&self) -> Option<Instant> {
        self.node.as_ref()?.deadline
    }

    /// The time left: `None` without a deadline, zero once it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The nearest value of type `T`.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<&T> {
        let wanted = TypeId::of::<T>();
        self.nodes().find_map(|node| match &node.kind {
            NodeKind::Value(id, value) if *id == wanted => value.downcast_ref(),
            _ => None,
        })
    }

    /// Whether the request was cancelled; says nothing of the deadline.
    pub fn is_cancelled(&self) -> bool {
        self.cancellable() && self.cancels().any(|state| state.is_cancelled())
    }

    /// Why the request should stop now: `None` while it should go on.
    ///
    /// Long loads poll this between steps.
    pub fn err(&self) -> Option<Error> {
        if self.is_cancelled() {
            return Some(ErrorKind::Cancelled.into());
        }
        let deadline = self.deadline()?;
        (Instant::now() >= deadline).then(|| ErrorKind::DeadlineExceeded.into())
    }

    /// Whether anything but completion can end this request.
    pub(crate) fn has_deadline_or_cancel(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| node.deadline.is_some() || node.cancellable)
    }

    pub(crate) fn cancellable(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.cancellable)
    }

    /// Calls `callback` when the request is cancelled, at once if it is already. Dropping the
    /// guard takes it back; a cancellation under way on another thread may still call it.
    ///
    /// The callback runs on the cancelling thread, with no lock of the context held.
    pub(crate) fn on_cancel(&self, callback: impl Fn() + Send + Sync + 'static) -> Subscription {
        let callback: Callback = Arc::new(callback);
        let entries = self
            .cancels()
            .map(|state| (state.clone(), state.subscribe(callback.clone())))
            .collect();
        Subscription { entries }
    }

    fn child(&self, deadline: Option<Instant>, cancellable: bool, kind: NodeKind) -> Context {
        Context {
            node: Some(Arc::new(Node {
                parent: self.clone(),
                deadline,
                cancellable,
                kind,
            })),
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.node.as_deref(), |node| node.parent.node.as_deref())
    }

    fn cancels(&self) -> impl Iterator<Item = &Arc<CancelState>> {
        self.nodes().filter_map(|node| match &node.kind {
            NodeKind::Cancel(state) => Some(state),
            _ => None,
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("remaining", &self.remaining())
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

/// Cancels the context it came with, and that context's children.
///
/// Dropping it cancels nothing. Any thread may cancel, any number of times.
#[derive(Clone)]
pub struct CancelHandle {
    state: Arc<CancelState>,
}

impl CancelHandle {
    /// Ends the request: waiting callers leave with [`ErrorKind::Cancelled`].
    pub fn cancel(&self) {
        self.state.cancel();
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelHandle")
            .field("cancelled", &self.state.is_cancelled())
            .finish()
    }
}

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct CancelState {
    /// Set under the lock of `callbacks`, read without it.
    cancelled: AtomicBool,
    callbacks: Mutex<Callbacks>,
}

#[derive(Default)]
struct Callbacks {
    next_id: u64,
    waiting: Vec<(u64, Callback)>,
}

impl CancelState {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn cancel(&self) {
        let waiting = {
            let mut callbacks = self.callbacks.lock();
            self.cancelled.store(true, Ordering::Release);
            std::mem::take(&mut callbacks.waiting)
        };
        for (_, callback) in waiting {
            callback();
        }
    }

    /// Registers `callback`, or calls it if `cancel` came first. Both look at `cancelled` under
    /// the lock, so a callback is never missed between the two.
    fn subscribe(&self, callback: Callback) -> u64 {
        let mut callbacks = self.callbacks.lock();
        let id = callbacks.next_id;
        callbacks.next_id += 1;
        if self.is_cancelled() {
            drop(callbacks);
            callback();
        } else {
            callbacks.waiting.push((id, callback));
        }
        id
    }

    fn unsubscribe(&self, id: u64) {
        let mut callbacks = self.callbacks.lock();
        let taken = callbacks
            .waiting
            .iter()
            .position(|(other, _)| *other == id)
            .map(|at| callbacks.waiting.swap_remove(at));
        drop(callbacks);
        // What the callback captured is dropped here, outside the lock.
        drop(taken);
    }
}

/// Keeps a callback of [`Context::on_cancel`] registered.
#[must_use]
pub(crate) struct Subscription {
    entries: Vec<(Arc<CancelState>, u64)>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for (state, id) in &self.entries {
            state.unsubscribe(*id);
        }
    }
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_child_never_outlives_its_parent() {
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
    fn cancelling_reaches_children_and_not_parents() {
        let (parent, _keep) = Context::background().with_cancel();
        let (ctx, canceller) = parent.with_cancel();
        let child = ctx.with_value(1).with_timeout(Duration::from_secs(60));
        assert!(child.err().is_none());
        canceller.cancel();
        assert_eq!(child.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
        assert!(!parent.is_cancelled());
    }

    #[test]
    fn a_callback_runs_once_and_not_after_its_guard() {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = |calls: &Arc<AtomicUsize>| {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        };
        let (ctx, canceller) = Context::background().with_cancel();
        drop(ctx.on_cancel(count(&calls)));
        let kept = ctx.on_cancel(count(&calls));
        canceller.cancel();
        canceller.cancel();
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
        drop(kept);
        let _late = ctx.on_cancel(count(&calls));
        assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 2);
    }

    #[test]
    fn a_timeout_beyond_the_clock_is_no_deadline() {
        assert!(
            Context::background()
                .with_timeout(Duration::MAX)
                .deadline()
                .is_none()
        );
    }
}
