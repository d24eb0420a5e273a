//! The user's getter, and the sink that it fills.

pub(crate) mod bulk;
pub(crate) mod old_value;
pub(crate) mod value;

use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::getter::old_value::OldValue;
use crate::getter::value::Value;
use crate::sink::Sink;
use crate::store::{KeyHash, MAX_ETAG, Store};

/// Loads the value of a key that is not cached.
///
/// Every closure with the signature of [`get`](Self::get) is a getter, and structs can implement the
/// trait. A closure written in place needs explicit parameter types, or [`getter_fn`] around it.
///
/// Several threads may call a getter at the same time. A process does not call it for a key while it
/// runs for that key. The exception is a key that was removed, or a cache that was cleared, in the
/// meantime: the call under way may return the old value. The getter must return the same value in
/// every process of the cluster.
///
/// A getter may call any group, build and remove groups, and drop pools and servers, including those
/// for which it runs. A nested get runs on the same stack, and takes about 3 KiB of it in a release build besides
/// what the getter takes. Their number is not limited: a key of a stranger must not decide how deep they go.
pub trait Getter: Send + Sync {
    /// Loads `key` and sets its value in `dest`, once.
    ///
    /// `ctx` is the context of the caller that started the load. For a client of a server it ends only
    /// after [`max_request_time`](crate::http::ServerBuilder::max_request_time), because peers ask again for
    /// a value that takes longer than an exchange. Long loads should stop when [`Context::err`] returns an
    /// error.
    ///
    /// # Errors
    ///
    /// [`Error::not_found`] for a key that does not exist, by itself or as the source of another error.
    /// Any other error reaches the callers as [`ErrorKind::Getter`], with this error as its source.
    /// By default errors are not remembered: see
    /// [`negative_ttl`](crate::GroupBuilder::negative_ttl) and [`error_ttl`](crate::GroupBuilder::error_ttl).
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

/// Lets the compiler infer the types of a getter closure.
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

/// A getter that returns its value instead of setting it in a sink.
///
/// [`GroupBuilder::build_with`](crate::GroupBuilder::build_with) does the same for its closure, and
/// describes what the closure may return. This function is for the places that take a [`Getter`]:
///
/// ```
/// use larder::{Registry, value_fn};
///
/// let roots = Registry::new().new_group(
///     "roots",
///     1 << 20,
///     value_fn(|_ctx, key| key.parse::<f64>().map(|x| x.sqrt().to_string())),
/// )?;
/// assert_eq!(roots.get("16")?, "4");
/// # Ok::<(), larder::Error>(())
/// ```
pub fn value_fn<V, E, F>(load: F) -> impl Getter
where
    V: Into<Value>,
    E: Into<BoxError>,
    F: Fn(&Context, &str) -> Result<V, E> + Send + Sync,
{
    move |ctx: &Context, key: &str, dest: &mut dyn Sink| {
        let value = load(ctx, key).map_err(Into::into)?;
        Ok(value.into().put(dest)?)
    }
}

/// The sink that a getter fills. It takes one value, and copies bytes straight to the layout of an
/// entry.
pub(crate) struct LoadSink<'a> {
    store: &'a Store,
    hash: KeyHash,
    key: &'a str,
    max_value_size: usize,
    /// The value that the getter may renew.
    pub(crate) old: Option<&'a OldValue>,
    value: Option<ByteView>,
    /// Whether the value lies in the store's memory as an entry does.
    is_entry: bool,
    ttl: Option<Duration>,
    etag: Option<Box<str>>,
    is_renewal: bool,
    /// The first error. It is kept because a getter may ignore it and return `Ok`.
    refused: Option<Error>,
}

impl<'a> LoadSink<'a> {
    pub(crate) fn new(
        store: &'a Store,
        hash: KeyHash,
        key: &'a str,
        max_value_size: usize,
    ) -> Self {
        LoadSink {
            store,
            hash,
            key,
            max_value_size,
            old: None,
            value: None,
            is_entry: false,
            ttl: None,
            etag: None,
            is_renewal: false,
            refused: None,
        }
    }

    /// Checks, once the getter has returned `Ok`, that it set one value.
    #[inline]
    pub(crate) fn finish(&mut self) -> Result<FilledSink<'_>> {
        let old = self.old.filter(|_| self.is_renewal);
        match (self.refused.take(), &mut self.value) {
            (Some(error), _) => Err(error),
            (None, Some(value)) => Ok(FilledSink {
                value,
                is_entry: self.is_entry,
                ttl: self.ttl.or(old.and_then(|old| old.good_for)),
                etag: self.etag.as_deref().or(old.and_then(OldValue::etag)),
                is_renewal: self.is_renewal,
            }),
            (None, None) => Err(ErrorKind::NothingSet.into()),
        }
    }

    /// The value, after [`finish`](Self::finish).
    #[inline]
    pub(crate) fn take_value(&mut self) -> ByteView {
        self.value.take().unwrap_or_default()
    }

    fn check(&mut self, len: usize) -> Result<()> {
        let error: Error = if self.value.is_some() {
            ErrorKind::SetTwice.into()
        } else if len > self.max_value_size {
            Error::new(
                ErrorKind::ValueTooLarge,
                format!(
                    "the value has {len} bytes, over the group's max_value_size of {}",
                    self.max_value_size
                ),
            )
        } else {
            return Ok(());
        };
        self.refused.get_or_insert_with(|| error.clone());
        Err(error)
    }
}

impl Sink for LoadSink<'_> {
    fn set_bytes(&mut self, value: &[u8]) -> Result<()> {
        self.check(value.len())?;
        let etag = self.etag.as_deref();
        let entry = self.store.keyed(self.hash, self.key, value, etag);
        self.is_entry = entry.is_some();
        self.value = Some(entry.unwrap_or_else(|| ByteView::from(value)));
        Ok(())
    }

    /// Shares the view's bytes. The store copies them later to memory of its own, if it keeps them.
    fn set_view(&mut self, value: &ByteView) -> Result<()> {
        self.take_view(value.clone())
    }

    fn take_view(&mut self, value: ByteView) -> Result<()> {
        self.check(value.len())?;
        self.value = Some(value);
        Ok(())
    }

    fn expire_in(&mut self, ttl: Duration) {
        self.ttl = Some(ttl);
    }

    fn set_etag(&mut self, etag: &str) {
        self.etag = (etag.len() <= MAX_ETAG).then(|| etag.into());
        // An entry has the etag after the value.
        self.is_entry = false;
    }

    fn not_modified(&mut self) -> Result<()> {
        let Some(old) = self.old else {
            let error = Error::new(ErrorKind::NothingSet, "there is no old value to renew");
            self.refused.get_or_insert_with(|| error.clone());
            return Err(error);
        };
        self.check(old.view.len())?;
        self.value = Some(old.view.clone());
        self.is_renewal = true;
        Ok(())
    }
}

/// The content of a [`LoadSink`].
#[derive(Debug)]
pub(crate) struct FilledSink<'s> {
    pub(crate) value: &'s mut ByteView,
    /// Whether the value lies in the store's memory as an entry does.
    pub(crate) is_entry: bool,
    pub(crate) ttl: Option<Duration>,
    pub(crate) etag: Option<&'s str>,
    /// Whether the value is the old one.
    pub(crate) is_renewal: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::{Eviction, StoreOptions};

    fn store() -> Store {
        Store::new(StoreOptions {
            capacity: 1 << 20,
            eviction: Eviction::default(),
            favor_objects: false,
            hot_fraction: 0.0,
            shards: None,
            retention: Duration::ZERO,
            forecast: false,
            clock: Clock::manual(),
        })
    }

    fn sink(store: &Store, max_value_size: usize) -> LoadSink<'_> {
        LoadSink::new(store, store.hash("key"), "key", max_value_size)
    }

    #[test]
    fn getter_without_a_value_is_an_error() {
        let error = sink(&store(), 10).finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NothingSet);
    }

    #[test]
    fn second_value_is_an_error_even_if_the_getter_ignores_it() {
        let store = store();
        let mut sink = sink(&store, 10);
        sink.set_str("one").unwrap();
        assert_eq!(sink.set_str("two").unwrap_err().kind(), ErrorKind::SetTwice);
        assert_eq!(sink.finish().unwrap_err().kind(), ErrorKind::SetTwice);
    }

    #[test]
    fn value_over_the_limit_is_refused() {
        let store = store();
        assert_eq!(
            sink(&store, 3).set_str("four").unwrap_err().kind(),
            ErrorKind::ValueTooLarge
        );
        let mut sink = sink(&store, 3);
        sink.set_str("thr").unwrap();
        sink.expire_in(Duration::from_secs(1));
        let filled = sink.finish().unwrap();
        assert_eq!(filled.value, "thr");
        assert_eq!(filled.ttl, Some(Duration::from_secs(1)));
    }
}
