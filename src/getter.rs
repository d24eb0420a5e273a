//! The user's loader, and the sink that it fills.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::sink::Sink;

/// Loads the value of a key that no process has cached.
///
/// Implemented by every closure of the shape of [`get`](Self::get), and by structs of one's own.
/// Closures written in place need their types spelled out, or [`getter_fn`] around them.
///
/// A getter is called by many threads at once, never twice at the same time for one key of one
/// process. It must give the same answer on every process of the cluster.
pub trait Getter: Send + Sync {
    /// Loads `key` and sets its value in `dest`, once.
    ///
    /// `ctx` is the context of the caller whose request led to the load; long loads should stop
    /// when [`Context::err`] says so.
    ///
    /// # Errors
    ///
    /// [`Error::not_found`] for a key that does not exist. Any other error reaches the callers as
    /// [`ErrorKind::Loader`], with this error as its source. Errors are not cached.
    fn get(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError>;
}

impl<F> Getter for F
where
    F: Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + Send + Sync,
{
    fn get(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        self(ctx, key, dest)
    }
}

/// Lets the compiler infer the types of a getter closure; Go's `GetterFunc`.
///
/// ```
/// let getter = larder::getter_fn(|_ctx, key, dest| Ok(dest.set_str(&key.to_uppercase())?));
/// # let _: &dyn larder::Getter = &getter;
/// ```
pub fn getter_fn<F>(f: F) -> F
where
    F: Fn(&Context, &str, &mut dyn Sink) -> Result<(), BoxError> + Send + Sync,
{
    f
}
