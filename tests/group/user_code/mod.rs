//! User code in unusual places: it panics, nests deeply, calls back, or drops the objects that it
//! runs in. Nothing aborts, hangs or stays half done.

mod contexts;
mod dumps;
mod ends;
mod hooks;
#[cfg(feature = "http")]
mod http;
mod listeners;
mod pickers;
mod values;

use std::panic::resume_unwind;

use larder::{Context, getter_fn};

use crate::common::Count;

pub fn panic_quietly() -> ! {
    resume_unwind(Box::new("a panic of the test"))
}

/// Panics when it is dropped.
pub struct DropPanics;

impl Drop for DropPanics {
    fn drop(&mut self) {
        panic_quietly();
    }
}

/// Counts its drops.
pub struct DropCounts(Count);

impl Drop for DropCounts {
    fn drop(&mut self) {
        self.0.add(1);
    }
}

pub fn texts() -> impl larder::Getter + 'static {
    getter_fn(|_: &Context, key, dest| Ok(dest.set_str(key)?))
}
