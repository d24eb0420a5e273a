//! Calls into the crate from user code that the crate runs: their thread, and how deep they nest.
//!
//! A listener may call a group, which may evict, which notifies a listener. Nested calls would grow
//! the stack without a bound. So each thread runs one notification at a time and queues those that
//! it causes; the outermost call runs them in a loop.
//!
//! A listener that loads its own victim evicts another entry for it, and so on for ever. So a
//! value that is loaded because of a notification that another notification caused is not kept.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::thread::{self, ThreadId};

use crate::panics::FirstPanic;
use crate::sync::thread_local;

/// The caller that a thread works for.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// The thread that waits for a loader thread's work; `None` for the thread itself.
    thread: Option<ThreadId>,
    /// The number of notifications, each caused by the one before.
    depth: u8,
}

type Notification = Box<dyn FnOnce(&mut FirstPanic)>;

struct Nesting {
    origin: Cell<Origin>,
    is_notifying: Cell<bool>,
    queue: RefCell<VecDeque<(Origin, Notification)>>,
}

thread_local! {
    static NESTING: Nesting = const {
        Nesting {
            origin: Cell::new(Origin { thread: None, depth: 0 }),
            is_notifying: Cell::new(false),
            queue: RefCell::new(VecDeque::new()),
        }
    };
}

impl Origin {
    /// The origin of what this thread has another thread do.
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

    /// Runs `code` as called from here.
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

/// Runs `notify`, and then what it queued; or queues it, if this thread runs a notification.
pub(crate) fn run_or_queue(panic: &mut FirstPanic, notify: impl FnOnce(&mut FirstPanic) + 'static) {
    struct Outermost;
    impl Drop for Outermost {
        fn drop(&mut self) {
            NESTING.with(|nesting| nesting.is_notifying.set(false));
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

/// Whether to keep a value that this thread loads.
pub(crate) fn may_keep() -> bool {
    NESTING.with(|nesting| nesting.origin.get().depth < 2)
}
