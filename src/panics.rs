//! Catches panics of user code where the crate has to finish its own work first.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `code`; `None` if it panics. The panic hook has reported the panic by then.
pub(crate) fn caught<T>(code: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(code)).map_err(discard).ok()
}

/// Keeps the first panic of several calls, to resume it after the last call.
#[derive(Default)]
pub(crate) struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    pub(crate) fn catch(&mut self, code: impl FnOnce()) {
        match catch_unwind(AssertUnwindSafe(code)) {
            Err(panic) if self.0.is_none() => self.0 = Some(panic),
            Err(panic) => discard(panic),
            Ok(()) => {}
        }
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Resumes the panic. A thread that unwinds already only drops it, because a second panic would
    /// abort the process.
    pub(crate) fn resume(self) {
        match self.0 {
            Some(panic) if std::thread::panicking() => discard(panic),
            Some(panic) => resume_unwind(panic),
            None => {}
        }
    }
}

/// Drops the payload of a panic. If that drop panics too, the second payload is leaked.
pub(crate) fn discard(panic: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(second);
    }
}
