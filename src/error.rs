//! The crate's one error type. It is cheap to clone, because flights share results.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// The error type that getters return.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: a [`kind`](Error::kind) to match on, and a text for people.
///
/// Clones share their text and source, so every caller that waited for one load gets the same error.
/// If the getter ran in this process, its own error is this error or its
/// [`source`](StdError::source). A chain in which each error is the source of the next may have any
/// length: neither formatting nor dropping it recurses.
#[derive(Clone)]
pub struct Error(Arc<Detail>);

struct Detail {
    kind: ErrorKind,
    message: Cow<'static, str>,
    /// Whether the source is an [`Error`], whose text follows this one's.
    continues: bool,
    source: Option<BoxError>,
}

/// The kinds of [`Error`]. More may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The getter, here or at the key's owner, returned [`Error::not_found`].
    NotFound,
    /// The getter, here or at the key's owner, returned an error.
    Getter,
    /// The getter panicked. The panic continues on the thread that ran the getter. All other callers
    /// get this error.
    GetterPanicked,
    /// The getter requested the key that it is loading, directly or through other getters of this
    /// process.
    RecursiveLoad,
    /// The getter returned `Ok` without setting a value, or renewed an old value although there is none.
    NothingSet,
    /// The getter set a value twice.
    SetTwice,
    /// The destination refused the value, because it is not UTF-8, not the expected message, or not
    /// the expected JSON; or a message could not be encoded.
    Sink,
    /// The key is longer than the group's limit.
    KeyTooLong,
    /// The value is longer than the group's limit.
    ValueTooLarge,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The caller's context was cancelled.
    Cancelled,
    /// Every loader thread is busy, or the system cannot start one; or as many loads run as
    /// [`max_concurrent_loads`](crate::GroupBuilder::max_concurrent_loads) allows. Here or at the key's owner.
    Overloaded,
    /// The key's owner is alive, and its getter still runs. A group asks the owner again and never
    /// returns this error.
    Loading,
    /// No cached value fits, and the call allowed no load: see
    /// [`GetOptions::only_if_cached`](crate::GetOptions::only_if_cached).
    NotCached,
    /// The peer could not be reached, or its response was not valid.
    Peer,
    /// The peer has no group of this name.
    UnknownGroup,
    /// A group of this name is registered already.
    DuplicateGroup,
    /// The group name is empty or too long.
    InvalidName,
    /// The capacity is not zero, but too small for one entry.
    CapacityTooSmall,
    /// An option is outside its range.
    InvalidOption,
    /// The base path does not begin and end with a slash, or would not reach each server unchanged.
    InvalidBasePath,
    /// A peer's URL does not parse, or its id, weight or zone is not valid.
    InvalidPeer,
    /// Two of the peers are the same.
    DuplicatePeer,
    /// The list of peers is empty.
    NoPeers,
    /// A peer picker is registered already.
    AlreadyRegistered,
    /// A change reached this process, but not all peers confirmed it: see [`Error::partial`].
    Partial,
    /// The file is not a dump of this group, or its header is damaged.
    InvalidDump,
    /// This system, or a peer, does not offer what was asked for.
    Unsupported,
    /// An operating-system call failed: binding, listening, spawning a thread.
    Io,
}

impl Error {
    /// An error of the given kind. `message` is its text, and should help to fix the cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error::detailed(kind, message.into().into(), false, None)
    }

    /// An error of the given kind. Its text is `message`, followed by the text of `source`.
    pub fn with_source(
        kind: ErrorKind,
        message: impl fmt::Display,
        source: impl Into<BoxError>,
    ) -> Self {
        let source = source.into();
        // If each error of a chain held the texts of all errors below it, its memory would grow with
        // the square of its length.
        let continues = source.is::<Error>();
        let message = if continues {
            message.to_string()
        } else {
            format!("{message}: {source}")
        };
        Error::detailed(kind, message.into(), continues, Some(source))
    }

    /// The error that a getter returns for a key that does not exist.
    ///
    /// Callers get it as [`ErrorKind::NotFound`], also callers in other processes: a peer's server
    /// answers with status 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::NotFound, message)
    }

    /// The kind, for matching.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the key does not exist. False if the key could not be loaded.
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// The peers that did not confirm a change, for [`ErrorKind::Partial`]; `None` for other kinds.
    pub fn partial(&self) -> Option<&Partial> {
        self.0.source.as_ref()?.downcast_ref()
    }

    /// Converts an error that a getter returned to the error that callers get. "Not found" and the
    /// errors of the getter's own sink or recursion keep their kind. Any other error becomes
    /// [`ErrorKind::Getter`], with the getter's error as its source.
    ///
    /// An [`Error`] of another kind comes from another cache that the getter called. If it kept its
    /// kind, it would look like a failure of this group's peer, deadline or pool.
    ///
    /// A program's own error type may wrap "not found", so the sources of such an error are searched.
    pub(crate) fn from_getter(error: BoxError) -> Self {
        let (kind, other) = match error.downcast::<Error>() {
            Ok(own) if own.kind().is_getters_own() => return *own,
            Ok(own) => (ErrorKind::Getter, own as BoxError),
            Err(other) if wraps_not_found(&*other) => (ErrorKind::NotFound, other),
            Err(other) => (ErrorKind::Getter, other),
        };
        let message = other.to_string();
        Error::detailed(kind, message.into(), false, Some(other))
    }

    fn detailed(
        kind: ErrorKind,
        message: Cow<'static, str>,
        continues: bool,
        source: Option<BoxError>,
    ) -> Self {
        Error(Arc::new(Detail {
            kind,
            message,
            continues,
            source,
        }))
    }

    /// The error whose text follows this one's.
    fn next(&self) -> Option<&Error> {
        let source = self.0.source.as_ref().filter(|_| self.0.continues)?;
        source.downcast_ref()
    }
}

/// Whether the first [`Error`] among the sources of `error` is "not found".
fn wraps_not_found(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(own) = error.downcast_ref::<Error>() {
            return own.is_not_found();
        }
        // The source of an `io::Error` is that of the error in it.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Drops a chain in a loop, because recursion could overflow the stack.
impl Drop for Detail {
    fn drop(&mut self) {
        let mut source = self.source.take();
        while let Some(Ok(error)) = source.map(|source| source.downcast::<Error>()) {
            source = Arc::into_inner(error.0).and_then(|mut detail| detail.source.take());
        }
    }
}

impl ErrorKind {
    fn is_getters_own(self) -> bool {
        matches!(
            self,
            ErrorKind::NotFound
                | ErrorKind::Getter
                | ErrorKind::RecursiveLoad
                | ErrorKind::NothingSet
                | ErrorKind::SetTwice
                | ErrorKind::Sink
                | ErrorKind::ValueTooLarge
        )
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "no such key",
            ErrorKind::Getter => "the getter failed",
            ErrorKind::GetterPanicked => "the getter panicked",
            ErrorKind::RecursiveLoad => {
                "the getter requested the key that it is loading; it would wait for itself"
            }
            ErrorKind::NothingSet => {
                "the getter returned Ok without a value; call one of the sink's set methods, \
                 or return Error::not_found"
            }
            ErrorKind::SetTwice => "the getter set a value twice; set it once",
            ErrorKind::Sink => "the destination refused the value",
            ErrorKind::KeyTooLong => "the key is longer than the group's max_key_size",
            ErrorKind::ValueTooLarge => "the value is longer than the group's max_value_size",
            ErrorKind::DeadlineExceeded => "the caller's deadline passed",
            ErrorKind::Cancelled => "the caller's context was cancelled",
            ErrorKind::Overloaded => {
                "every loader thread is busy; raise max_loader_threads or shed load"
            }
            ErrorKind::Loading => "the owner of the key is still loading it",
            ErrorKind::NotCached => "no cached value fits, and the call allows no load",
            ErrorKind::Peer => "the peer did not answer",
            ErrorKind::UnknownGroup => "the peer has no such group",
            ErrorKind::DuplicateGroup => "a group of this name exists; use get_group",
            ErrorKind::InvalidName => "a group's name is 1 to 256 bytes long",
            ErrorKind::CapacityTooSmall => {
                "the capacity is too small for one entry; use 0 to switch caching off"
            }
            ErrorKind::InvalidOption => "an option is out of range",
            ErrorKind::InvalidBasePath => "a base path begins and ends with a slash",
            ErrorKind::InvalidPeer => "a peer is a URL such as http://10.0.0.1:8080",
            ErrorKind::DuplicatePeer => "a peer is listed twice",
            ErrorKind::NoPeers => "a list of peers has at least this process",
            ErrorKind::AlreadyRegistered => "a peer picker is registered already",
            ErrorKind::Partial => "some peers did not confirm the change",
            ErrorKind::InvalidDump => "the file is not a dump of this group",
            ErrorKind::Unsupported => "this system, or a peer, does not offer it",
            ErrorKind::Io => "an operating-system call failed",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut error = self;
        loop {
            f.write_str(&error.0.message)?;
            let Some(next) = error.next() else {
                return Ok(());
            };
            f.write_str(": ")?;
            error = next;
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:?})", self.kind(), self.to_string())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.0.source.as_deref()?;
        Some(source)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Error::detailed(kind, kind.text().into(), false, None)
    }
}

/// The outcome of a change that some peers did not confirm: see [`Error::partial`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Partial {
    /// The peers that did not confirm the change. All others did.
    pub failed: Vec<FailedPeer>,
    /// When the last of these peers serves its old values at the latest, if the groups have a
    /// [`max_unverified`](crate::GroupBuilder::max_unverified) and more than half of all nodes confirmed the
    /// change. `None` otherwise: each of these peers serves them until its first exchange with another node.
    pub stale_until: Option<Instant>,
}

/// A peer that did not confirm a change.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedPeer {
    /// The peer, as [`ProtoGetter::url`](crate::ProtoGetter::url) names it.
    pub peer: String,
    /// Why it did not. Unless it refused the change, it may have received it.
    pub error: Error,
}

impl Partial {
    pub(crate) fn new(failed: Vec<FailedPeer>, stale_until: Option<Instant>) -> Self {
        Partial {
            failed,
            stale_until,
        }
    }
}

impl FailedPeer {
    pub(crate) fn new(peer: String, error: Error) -> Self {
        FailedPeer { peer, error }
    }
}

impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, FailedPeer { peer, error }) in self.failed.iter().enumerate() {
            let between = if n == 0 { "" } else { "; " };
            write!(f, "{between}{peer}: {error}")?;
        }
        Ok(())
    }
}

impl StdError for Partial {}

impl From<Partial> for Error {
    fn from(partial: Partial) -> Self {
        Error::with_source(ErrorKind::Partial, ErrorKind::Partial, partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byteview::ByteView;

    #[test]
    fn error_of_the_getter_is_the_source() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::from_getter(Box::new(io)).clone();
        assert_eq!(error.kind(), ErrorKind::Getter);
        assert_eq!(error.to_string(), "disk on fire");
        let source = error.source().expect("a source");
        assert!(source.downcast_ref::<std::io::Error>().is_some());
    }

    #[test]
    fn not_found_keeps_its_kind_through_a_getter() {
        let error = Error::from_getter(Error::not_found("no colour mauve").into());
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no colour mauve");
    }

    #[test]
    fn not_found_is_recognised_in_an_error_that_wraps_it() {
        #[derive(Debug)]
        struct Wrapper(BoxError);
        impl fmt::Display for Wrapper {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("no paint")
            }
        }
        impl StdError for Wrapper {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(&*self.0)
            }
        }
        let wrapped = |inner: Error| {
            let inner = io::Error::other(Wrapper(inner.into()));
            Error::from_getter(Wrapper(inner.into()).into())
        };
        let error = wrapped(Error::not_found("no colour mauve"));
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no paint");
        assert!(error.source().is_some_and(|source| source.is::<Wrapper>()));
        // The error of a cache decides, not what lies below it.
        let other = Error::with_source(ErrorKind::Peer, "down", Error::not_found("gone"));
        assert_eq!(wrapped(other).kind(), ErrorKind::Getter);
        let missing_file = io::Error::from(io::ErrorKind::NotFound);
        let error = Error::from_getter(missing_file.into());
        assert_eq!(error.kind(), ErrorKind::Getter);
    }

    #[test]
    fn failure_of_a_cache_behind_the_getter_becomes_a_getter_error() {
        let error = Error::from_getter(Error::from(ErrorKind::Overloaded).into());
        assert_eq!(error.kind(), ErrorKind::Getter);
        let source = error.source().and_then(|s| s.downcast_ref::<Error>());
        assert_eq!(source.map(Error::kind), Some(ErrorKind::Overloaded));
    }

    #[test]
    fn partial_error_names_the_peers() {
        let failed = |peer: &str| FailedPeer::new(peer.into(), ErrorKind::Unsupported.into());
        let error = Error::from(Partial::new(
            vec![failed("http://a"), failed("http://b")],
            None,
        ));
        assert_eq!(error.kind(), ErrorKind::Partial);
        let partial = error.partial().expect("a partial error");
        assert_eq!(partial.failed[1].peer, "http://b");
        assert_eq!(partial.failed[1].error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("http://a: "), "{error}");
        assert!(Error::not_found("x").partial().is_none());
    }

    #[test]
    fn result_takes_no_more_than_its_value() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<ByteView>>(), size_of::<ByteView>());
    }
}
