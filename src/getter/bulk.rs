//! A getter that loads several keys with one call, and the sinks that it fills.

use std::fmt;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{BoxError, Error, Result};
use crate::getter::old_value::OldValue;
use crate::getter::{Getter, LoadSink};
use crate::sink::Sink;
use crate::sink::message::ProtoMessage;

/// Loads several keys with one call, for sources that answer many keys about as fast as one: a query
/// with `IN (…)`, a bulk request to a service.
///
/// [`GroupBuilder::build_bulk`](crate::GroupBuilder::build_bulk) makes a group with such a getter.
/// [`Group::get_many`](crate::Group::get_many) then calls [`load_many`](Self::load_many) once for all missing
/// keys that this process owns, however many they are, and each other owner calls it once for each request,
/// which has at most 128 keys by default. Single gets call [`Getter::get`].
///
/// The rules for a [`Getter`] apply. A call for several keys leads the loads of all of them:
/// a get of one of these keys waits for it, and a key that is already being loaded is not passed to it.
///
/// A closure is a bulk getter by [`bulk_fn`].
pub trait BulkGetter: Getter {
    /// Loads `keys`. Each sink belongs to the key at the same index, and takes its value, or by
    /// [`fail`](BulkSink::fail) its error. The keys differ from each other.
    ///
    /// A key that gets neither is not found. The callers of other keys are not affected.
    ///
    /// The default implementation calls [`Getter::get`] for each key.
    ///
    /// # Errors
    ///
    /// An error for all keys that have neither a value nor an error, for example if the source does not
    /// answer.
    fn load_many(
        &self,
        ctx: &Context,
        keys: &[&str],
        sinks: &mut [BulkSink<'_>],
    ) -> Result<(), BoxError> {
        for (key, sink) in keys.iter().zip(sinks) {
            let with_old = ctx.with_old_value(sink.old.as_ref());
            let ctx = with_old.as_ref().unwrap_or(ctx);
            if let Err(error) = self.get(ctx, key, sink) {
                sink.fail(error);
            }
        }
        Ok(())
    }
}

/// Makes a [`BulkGetter`] of a closure. A single get calls it with one key.
///
/// ```
/// use larder::{Context, Group, Sink, bulk_fn};
/// # let registry = larder::Registry::new();
///
/// let colors = Group::builder("colors")
///     # .registry(&registry)
///     .build_bulk(bulk_fn(|_ctx, names, sinks| {
///         // One query for all names.
///         for (name, sink) in names.iter().zip(sinks) {
///             match *name {
///                 "red" => sink.set_str("#ff0000")?,
///                 "blue" => sink.set_str("#0000ff")?,
///                 _ => {} // Not found.
///             }
///         }
///         Ok(())
///     }))?;
/// let found = colors.get_many(&Context::background(), &["red", "rod", "blue"]);
/// assert_eq!(found[0].as_ref().unwrap(), &"#ff0000");
/// assert!(found[1].as_ref().is_err_and(|error| error.is_not_found()));
/// # Ok::<(), larder::Error>(())
/// ```
pub fn bulk_fn<F>(load: F) -> impl BulkGetter
where
    F: Fn(&Context, &[&str], &mut [BulkSink<'_>]) -> Result<(), BoxError> + Send + Sync,
{
    BulkFn(load)
}

struct BulkFn<F>(F);

impl<F> Getter for BulkFn<F>
where
    F: Fn(&Context, &[&str], &mut [BulkSink<'_>]) -> Result<(), BoxError> + Send + Sync,
{
    fn get(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        let mut sink = BulkSink::new(dest);
        sink.old = ctx.old_value().cloned();
        (self.0)(ctx, &[key], std::slice::from_mut(&mut sink))?;
        sink.finish()
    }
}

impl<F> BulkGetter for BulkFn<F>
where
    F: Fn(&Context, &[&str], &mut [BulkSink<'_>]) -> Result<(), BoxError> + Send + Sync,
{
    fn load_many(
        &self,
        ctx: &Context,
        keys: &[&str],
        sinks: &mut [BulkSink<'_>],
    ) -> Result<(), BoxError> {
        (self.0)(ctx, keys, sinks)
    }
}

/// The sink of one key of a [`BulkGetter`]: takes a value, as each [`Sink`], or an error.
pub struct BulkSink<'a> {
    dest: &'a mut dyn Sink,
    /// The cached value of the key, which the getter may renew.
    old: Option<OldValue>,
    is_set: bool,
    error: Option<BoxError>,
}

impl<'a> BulkSink<'a> {
    /// A sink that passes the value to `dest`.
    pub fn new(dest: &'a mut dyn Sink) -> Self {
        BulkSink {
            dest,
            old: None,
            is_set: false,
            error: None,
        }
    }

    /// The sink of a load.
    pub(crate) fn of_load(sink: &'a mut LoadSink<'_>) -> Self {
        BulkSink {
            old: sink.old.cloned(),
            ..BulkSink::new(sink)
        }
    }

    /// Like [`Context::stale`], for the key of this sink.
    pub fn stale(&self) -> Option<&ByteView> {
        self.old.as_ref().map(|old| &old.view)
    }

    /// Like [`Context::etag`], for the key of this sink.
    pub fn etag(&self) -> Option<&str> {
        self.old.as_ref()?.etag()
    }

    /// Sets the error of this key, as a [`Getter`] returns it. It takes precedence over a value of the key.
    pub fn fail(&mut self, error: impl Into<BoxError>) {
        self.error = Some(error.into());
    }

    /// Whether the key has neither a value nor an error.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_set && self.error.is_none()
    }

    /// Checks that the key has a value.
    ///
    /// # Errors
    ///
    /// The error that was set; [`Error::not_found`] if there is neither an error nor a value.
    pub fn finish(self) -> Result<(), BoxError> {
        match self.error {
            Some(error) => Err(error),
            None if self.is_set => Ok(()),
            None => Err(Error::not_found("the bulk getter found no value for this key").into()),
        }
    }
}

impl Sink for BulkSink<'_> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        self.is_set = true;
        self.dest.set_bytes(value)
    }

    fn set_str(&mut self, value: &str) -> Result<()> {
        self.is_set = true;
        self.dest.set_str(value)
    }

    fn set_proto(&mut self, message: &dyn ProtoMessage) -> Result<()> {
        self.is_set = true;
        self.dest.set_proto(message)
    }

    fn set_view(&mut self, value: &ByteView) -> Result<()> {
        self.is_set = true;
        self.dest.set_view(value)
    }

    fn take_view(&mut self, value: ByteView) -> Result<()> {
        self.is_set = true;
        self.dest.take_view(value)
    }

    fn expire_in(&mut self, ttl: Duration) {
        self.dest.expire_in(ttl);
    }

    fn set_etag(&mut self, etag: &str) {
        self.dest.set_etag(etag);
    }

    fn not_modified(&mut self) -> Result<()> {
        self.is_set = true;
        self.dest.not_modified()
    }
}

impl fmt::Debug for BulkSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkSink")
            .field("is_set", &self.is_set)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}
