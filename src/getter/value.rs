//! The value that a getter returns, with its time to live and its etag.

use std::fmt;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::error::Result;
use crate::sink::Sink;

/// A value, how long it may be cached, and its etag: the result of a getter that
/// [returns](crate::GroupBuilder::build_with) its values.
///
/// Texts, bytes and views are values by `into()`, so a getter needs this type only to set more than
/// the bytes.
///
/// ```
/// use larder::{Group, Value};
/// use std::time::Duration;
/// # let registry = larder::Registry::new();
///
/// let quotes = Group::builder("quotes")
///     # .registry(&registry)
///     .build_with(|_ctx, name| {
///         let price = name.len().to_string();
///         Ok::<_, larder::Error>(Value::new(price).expire_in(Duration::from_secs(5)))
///     })?;
/// assert_eq!(quotes.get("copper")?, "6");
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Value {
    content: Content,
    expire_in: Option<Duration>,
    etag: Option<String>,
}

/// The bytes, in the form in which the getter has them. They are copied once, to the layout of an
/// entry.
#[derive(Clone)]
enum Content {
    Text(String),
    Bytes(Vec<u8>),
    Static(&'static [u8]),
    View(ByteView),
    /// The old value.
    NotModified,
}

impl Value {
    /// A value without a limit of its own.
    pub fn new(value: impl Into<Value>) -> Self {
        value.into()
    }

    /// The value that [`Context::stale`](crate::Context::stale) returns, which has not changed: see
    /// [`Sink::not_modified`]. Without such a value, the load fails with
    /// [`ErrorKind::NothingSet`](crate::ErrorKind::NothingSet).
    pub fn not_modified() -> Self {
        Content::NotModified.into()
    }

    /// The same value, with the text by which the getter recognises it in a later load: see
    /// [`Sink::set_etag`].
    pub fn etag(mut self, etag: impl Into<String>) -> Self {
        self.etag = Some(etag.into());
        self
    }

    /// The same value, to be cached for `ttl` at most, counted from the start of the load. A group's
    /// [`time_to_live`](crate::GroupBuilder::time_to_live) can only shorten it. `Duration::MAX` means
    /// no limit.
    pub fn expire_in(mut self, ttl: Duration) -> Self {
        self.expire_in = Some(ttl);
        self
    }

    /// Sets the value in a sink.
    pub(crate) fn put(self, dest: &mut dyn Sink) -> Result<()> {
        if let Some(ttl) = self.expire_in {
            dest.expire_in(ttl);
        }
        if let Some(etag) = &self.etag {
            dest.set_etag(etag);
        }
        match self.content {
            Content::Text(text) => dest.set_str(&text),
            Content::Bytes(bytes) => dest.set_bytes(&bytes),
            Content::Static(bytes) => dest.set_bytes(bytes),
            Content::View(view) => dest.take_view(view),
            Content::NotModified => dest.not_modified(),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match &self.content {
            Content::Text(text) => text.as_bytes(),
            Content::Bytes(bytes) => bytes,
            Content::Static(bytes) => bytes,
            Content::View(view) => view,
            Content::NotModified => &[],
        }
    }
}

impl From<Content> for Value {
    fn from(content: Content) -> Self {
        Value {
            content,
            expire_in: None,
            etag: None,
        }
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Content::Text(text).into()
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Content::Bytes(bytes).into()
    }
}

/// Shares the view's bytes until the store copies them to memory of its own.
impl From<ByteView> for Value {
    fn from(view: ByteView) -> Self {
        Content::View(view).into()
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Content::Static(text.as_bytes()).into()
    }
}

impl From<&'static [u8]> for Value {
    fn from(bytes: &'static [u8]) -> Self {
        Content::Static(bytes).into()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("len", &self.as_bytes().len())
            .field("expire_in", &self.expire_in)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}
