//! The cached value that a load may renew, in the getter's context.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;

/// A cached value, and its times.
#[derive(Clone, Debug)]
pub(crate) struct OldValue {
    pub(crate) view: ByteView,
    pub(crate) etag: Option<ByteView>,
    /// Its time to live, from the start of its load; `None` if it does not expire.
    pub(crate) good_for: Option<Duration>,
}

impl OldValue {
    pub(crate) fn etag(&self) -> Option<&str> {
        // It was set as a `&str`, so it is UTF-8.
        self.etag.as_ref().and_then(|etag| etag.to_str().ok())
    }
}

/// The old value in the context of a getter. `None` hides that of a load which this one is a part of.
struct Stale(Option<OldValue>);

/// For getters that can find out whether a value has changed for less than it costs to load it.
///
/// ```
/// use larder::{Group, Value};
/// use std::time::Duration;
/// # let registry = larder::Registry::new();
/// # fn row_version(_: &str) -> larder::Result<u64> { Ok(7) }
/// # fn read_row(_: &str) -> larder::Result<String> { Ok("a long row".into()) }
///
/// let rows = Group::builder("rows")
///     # .registry(&registry)
///     .time_to_live(Duration::from_secs(60))
///     .keep_for_revalidation(Duration::from_secs(3600))
///     .build_with(|ctx, key| {
///         let version = row_version(key)?.to_string();
///         if ctx.etag() == Some(&version) {
///             return Ok::<_, larder::Error>(Value::not_modified());
///         }
///         Ok(Value::new(read_row(key)?).etag(version))
///     })?;
/// assert_eq!(rows.get("7")?, "a long row");
/// # Ok::<(), larder::Error>(())
/// ```
impl Context {
    /// The value of the getter's key that is cached here, fresh or not. The getter may renew it by
    /// [`Sink::not_modified`](crate::Sink::not_modified). `None` outside of a getter, and if there is no
    /// such value: it was never loaded, or removed, evicted, or not
    /// [kept](crate::GroupBuilder::keep_for_revalidation) after its time.
    ///
    /// In a [`BulkGetter`](crate::BulkGetter), each [`BulkSink`](crate::BulkSink) has the value of its key.
    pub fn stale(&self) -> Option<&ByteView> {
        self.old_value().map(|old| &old.view)
    }

    /// The etag that the getter [set](crate::Sink::set_etag) for the value that [`stale`](Self::stale)
    /// returns.
    pub fn etag(&self) -> Option<&str> {
        self.old_value()?.etag()
    }

    pub(crate) fn old_value(&self) -> Option<&OldValue> {
        self.value::<Stale>()?.0.as_ref()
    }

    /// The context of a getter whose key has this old value. `None` if it is this context.
    #[inline]
    pub(crate) fn with_old_value(&self, old: Option<&OldValue>) -> Option<Context> {
        let is_same = old.is_none() && self.old_value().is_none();
        (!is_same).then(|| self.with_value(Stale(old.cloned())))
    }
}
