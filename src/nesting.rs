//! Nested calls: user code that the crate runs may call the crate again. This module records the
//! thread that such a call works for, and how deeply notifications nest.
//!
//! A listener may call a group, which may evict, which notifies a listener. Nested calls would grow
//! the stack without a limit. So each thread runs one notification at a time and queues the
//! notifications that it causes. The outermost call runs them in a loop.
//!
//! A listener may load the evicted key again. This evicts another entry and notifies the listener
//! again, without end. So a value is not cached if it is loaded in a notification that another
//! notification caused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem::{self, ManuallyDrop};
use std::thread::{self, ThreadId};

use crate::panics::FirstPanic;
use crate::sync::thread_local;

/// The caller that a thread works for.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// The thread that waits for this loader thread's work; `None` if this thread works for itself.
    thread: Option<ThreadId>,
    /// The number of nested notifications, each caused by the one before.
    depth: u8,
}

type Notification = Box<dyn FnOnce(&mut FirstPanic)>;

/// Has no destructor. A thread-local value with one cannot be used by the destructors of the
/// program's own thread-local values, and these may call a group.
struct Nesting {
    origin: Cell<Origin>,
    is_notifying: Cell<bool>,
    /// Empty and without an allocation while the thread runs no notification.
    queue: RefCell<ManuallyDrop<VecDeque<(Origin, Notification)>>>,
}

thread_local! {
    static NESTING: Nesting = const {
        Nesting {
            origin: Cell::new(Origin { thread: None, depth: 0 }),
            is_notifying: Cell::new(false),
            queue: RefCell::new(ManuallyDrop::new(VecDeque::new())),
        }
    };
}

impl Origin {
    /// The origin of work that this thread hands to another thread.
    pub(crate) fn here() -> Origin {
        let origin = NESTING.with(|nesting| nesting.origin.get());
        Origin {
            thread: Some(origin.thread()),
            ..origin
        }
    }

    pub(crate) fn thread(&self) -> ThreadId {
        self.thread.unwrap_or_else(|| thread::current().id())
    }

    /// Runs `code` with this origin.
    pub(crate) fn run(self, code: impl FnOnce()) {
        struct Outer(Origin);
        impl Drop for Outer {
            fn drop(&mut self) {
                NESTING.with(|nesting| nesting.origin.set(self.0));
            }
        }
        let _outer = Outer(NESTING.with(|nesting| nesting.origin.replace(self)));
        code();
    }
}

/// Runs `notify`, and then the notifications that it queued. If this thread already runs a
/// notification, queues `notify` instead.
pub(crate) fn run_or_queue(panic: &mut FirstPanic, notify: impl FnOnce(&mut FirstPanic) + 'static) {
    struct Outermost;
    impl Drop for Outermost {
        fn drop(&mut self) {
            let queue = NESTING.with(|nesting| {
                nesting.is_notifying.set(false);
                mem::take(&mut *nesting.queue.borrow_mut())
            });
            drop(ManuallyDrop::into_inner(queue));
        }
    }
    let mut origin = NESTING.with(|nesting| nesting.origin.get());
    origin.depth = origin.depth.saturating_add(1);
    if NESTING.with(|nesting| nesting.is_notifying.replace(true)) {
        let queued = (origin, Box::new(notify) as Notification);
        return NESTING.with(|nesting| nesting.queue.borrow_mut().push_back(queued));
    }
    let _outermost = Outermost;
    origin.run(|| notify(panic));
    let next = || NESTING.with(|nesting| nesting.queue.borrow_mut().pop_front());
    while let Some((origin, notify)) = next() {
        origin.run(|| notify(panic));
    }
}

/// Whether a value that this thread loads may be cached.
pub(crate) fn may_keep() -> bool {
    NESTING.with(|nesting| nesting.origin.get().depth < 2)
}
