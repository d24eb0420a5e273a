//! Encodes errors as status, header and text.
//!
//! The header names the kind of the error, the status is the closest one of HTTP, the body is the
//! error's text. Responses without the header come from golang/groupcache, its descendants, or a
//! proxy.

use crate::error::{Error, ErrorKind};

/// The header of a response other than 200: the kind of the error, as named by [`status_of`].
///
/// Its presence, with any value, shows that the peer is alive and a server of larder.
pub(crate) const ERROR_HEADER: &str = "larder-error";

/// The HTTP status and the [`ERROR_HEADER`] of a response that reports an error of `kind`.
///
/// Some kinds arise only during set-up. They reach this function only if a getter returned one, and
/// count as failures of the getter, like a getter's own [`ErrorKind::Peer`].
pub(crate) fn status_of(kind: ErrorKind) -> (u16, &'static str) {
    match kind {
        ErrorKind::NotFound => (404, NOT_FOUND),
        ErrorKind::UnknownGroup => (404, UNKNOWN_GROUP),
        ErrorKind::GetterPanicked => (503, PANICKED),
        ErrorKind::RecursiveLoad => (503, RECURSIVE_LOAD),
        ErrorKind::NothingSet => (503, NOTHING_SET),
        ErrorKind::SetTwice => (503, SET_TWICE),
        ErrorKind::Sink => (503, SINK),
        // The key is part of the request's target; 400 is for targets that do not parse.
        ErrorKind::KeyTooLong => (414, KEY_TOO_LONG),
        // Not 413, which is for a request that is too large. Here the getter's value is.
        ErrorKind::ValueTooLarge => (503, VALUE_TOO_LARGE),
        ErrorKind::DeadlineExceeded => (504, DEADLINE),
        ErrorKind::Cancelled => (503, CANCELLED),
        ErrorKind::Overloaded => (503, OVERLOADED),
        ErrorKind::Loading => (503, LOADING),
        ErrorKind::Io => (503, IO),
        ErrorKind::Getter
        | ErrorKind::Peer
        | ErrorKind::DuplicateGroup
        | ErrorKind::InvalidName
        | ErrorKind::CapacityTooSmall
        | ErrorKind::InvalidOption
        | ErrorKind::InvalidBasePath
        | ErrorKind::InvalidPeer
        | ErrorKind::DuplicatePeer
        | ErrorKind::NoPeers
        | ErrorKind::AlreadyRegistered
        | ErrorKind::Partial
        | ErrorKind::InvalidDump
        | ErrorKind::NotCached
        | ErrorKind::Unsupported => (503, GETTER),
    }
}

/// The error that a response other than 200 stands for: the inverse of [`status_of`].
///
/// An error of the owner's getter or group keeps its kind and its text, and so does
/// [`ErrorKind::Overloaded`]. After one of the others, the caller's group asks again, or asks another
/// peer or its own getter:
///
/// - [`ErrorKind::Loading`] if the owner is alive and its getter still runs: see [`loading_after`](super::loading_after).
///   The caller asks the same owner again.
/// - [`ErrorKind::Peer`] if the owner ran out of time or was cancelled, or a system call failed there.
///   None of this is a property of the key. (The caller checks its own deadline.)
/// - [`ErrorKind::UnknownGroup`] if the owner has no such group. A 404 without the header means the
///   same: golang/groupcache and its descendants send it. Some send it for a missing key as well; then
///   the caller's getter reports that.
/// - [`ErrorKind::Peer`] for every other response without the header, and for an unknown value of the
///   header, which a later version may send.
pub(crate) fn error_of(status: u16, error_header: Option<&str>, text: &str) -> Error {
    let kind = match error_header {
        Some(code) => kind_at_caller(code),
        None if status == 404 => ErrorKind::UnknownGroup,
        None => ErrorKind::Peer,
    };
    if error_header.is_none() || kind == ErrorKind::Peer {
        let message = match excerpt(text) {
            empty if empty.is_empty() => format!("the peer answered {status}"),
            excerpt => format!("the peer answered {status}: {excerpt}"),
        };
        return Error::new(kind, message);
    }
    if text.is_empty() {
        return kind.into();
    }
    Error::new(kind, text)
}

fn kind_at_caller(code: &str) -> ErrorKind {
    match code {
        NOT_FOUND => ErrorKind::NotFound,
        UNKNOWN_GROUP => ErrorKind::UnknownGroup,
        GETTER => ErrorKind::Getter,
        PANICKED => ErrorKind::GetterPanicked,
        RECURSIVE_LOAD => ErrorKind::RecursiveLoad,
        NOTHING_SET => ErrorKind::NothingSet,
        SET_TWICE => ErrorKind::SetTwice,
        SINK => ErrorKind::Sink,
        KEY_TOO_LONG => ErrorKind::KeyTooLong,
        VALUE_TOO_LARGE => ErrorKind::ValueTooLarge,
        OVERLOADED => ErrorKind::Overloaded,
        LOADING => ErrorKind::Loading,
        // DEADLINE, CANCELLED, IO, and the values of later versions.
        _ => ErrorKind::Peer,
    }
}

/// The beginning of a text of unknown origin, on one line for a log.
fn excerpt(text: &str) -> String {
    let one_line = |c: char| if c.is_control() { ' ' } else { c };
    text.trim()
        .chars()
        .take(EXCERPT_CHARS)
        .map(one_line)
        .collect()
}

const EXCERPT_CHARS: usize = 200;

const NOT_FOUND: &str = "not-found";
const UNKNOWN_GROUP: &str = "unknown-group";
const GETTER: &str = "getter";
const PANICKED: &str = "panicked";
const RECURSIVE_LOAD: &str = "recursive-load";
const NOTHING_SET: &str = "nothing-set";
const SET_TWICE: &str = "set-twice";
const SINK: &str = "sink";
const KEY_TOO_LONG: &str = "key-too-long";
const VALUE_TOO_LARGE: &str = "value-too-large";
const DEADLINE: &str = "deadline";
const CANCELLED: &str = "cancelled";
const OVERLOADED: &str = "overloaded";
const LOADING: &str = "loading";
const IO: &str = "io";

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind as K;
    use proptest::prelude::*;

    /// Kind at the owner, status, header, kind at the caller.
    const MAPPINGS: [(K, u16, &str, K); 27] = [
        (K::NotFound, 404, "not-found", K::NotFound),
        (K::UnknownGroup, 404, "unknown-group", K::UnknownGroup),
        (K::Getter, 503, "getter", K::Getter),
        (K::GetterPanicked, 503, "panicked", K::GetterPanicked),
        (K::RecursiveLoad, 503, "recursive-load", K::RecursiveLoad),
        (K::NothingSet, 503, "nothing-set", K::NothingSet),
        (K::SetTwice, 503, "set-twice", K::SetTwice),
        (K::Sink, 503, "sink", K::Sink),
        (K::KeyTooLong, 414, "key-too-long", K::KeyTooLong),
        (K::ValueTooLarge, 503, "value-too-large", K::ValueTooLarge),
        (K::DeadlineExceeded, 504, "deadline", K::Peer),
        (K::Cancelled, 503, "cancelled", K::Peer),
        (K::Overloaded, 503, "overloaded", K::Overloaded),
        (K::Loading, 503, "loading", K::Loading),
        (K::Io, 503, "io", K::Peer),
        (K::Peer, 503, "getter", K::Getter),
        (K::DuplicateGroup, 503, "getter", K::Getter),
        (K::InvalidName, 503, "getter", K::Getter),
        (K::CapacityTooSmall, 503, "getter", K::Getter),
        (K::InvalidOption, 503, "getter", K::Getter),
        (K::InvalidBasePath, 503, "getter", K::Getter),
        (K::InvalidPeer, 503, "getter", K::Getter),
        (K::DuplicatePeer, 503, "getter", K::Getter),
        (K::NoPeers, 503, "getter", K::Getter),
        (K::AlreadyRegistered, 503, "getter", K::Getter),
        (K::Partial, 503, "getter", K::Getter),
        (K::NotCached, 503, "getter", K::Getter),
    ];

    #[test]
    fn every_kind_maps_as_in_the_table() {
        for (at_owner, status, header, at_caller) in MAPPINGS {
            assert_eq!(status_of(at_owner), (status, header), "{at_owner:?}");
            let error = error_of(status, Some(header), "no colour mauve");
            assert_eq!(error.kind(), at_caller, "{at_owner:?}");
            let want = match at_caller {
                K::Peer => format!("the peer answered {status}: no colour mauve"),
                _ => "no colour mauve".to_string(),
            };
            assert_eq!(error.to_string(), want, "{at_owner:?}");
        }
    }

    #[test]
    fn table_has_every_kind_once() {
        let kinds: std::collections::HashSet<_> = MAPPINGS.iter().map(|row| row.0).collect();
        assert_eq!(kinds.len(), MAPPINGS.len());
    }

    #[test]
    fn response_without_the_header_is_a_peer_error() {
        for (status, text, kind, want) in [
            (
                404,
                "no such group: colors\n",
                K::UnknownGroup,
                "the peer answered 404: no such group: colors",
            ),
            (500, "boom\n", K::Peer, "the peer answered 500: boom"),
            (503, "", K::Peer, "the peer answered 503"),
            (302, "", K::Peer, "the peer answered 302"),
            (
                502,
                "<html>\r\n<h1>Bad Gateway</h1>\x1b[2J",
                K::Peer,
                "the peer answered 502: <html>  <h1>Bad Gateway</h1> [2J",
            ),
        ] {
            let error = error_of(status, None, text);
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, want));
        }
    }

    #[test]
    fn long_text_without_the_header_is_truncated() {
        let error = error_of(502, None, &"é".repeat(100_000));
        assert_eq!(
            error.to_string(),
            format!("the peer answered 502: {}", "é".repeat(200))
        );
    }

    #[test]
    fn unknown_header_value_is_a_peer_error() {
        for status in [404, 503, 599] {
            let error = error_of(status, Some("made-of-cheese"), "mouldy");
            assert_eq!(error.kind(), K::Peer);
        }
    }

    #[test]
    fn empty_text_becomes_that_of_the_kind() {
        let error = error_of(404, Some("not-found"), "");
        assert_eq!(error.to_string(), K::NotFound.to_string());
    }

    proptest! {
        #[test]
        fn text_round_trips(
            text in any::<String>().prop_filter("has its own test", |t| !t.is_empty()),
            row in 0..10_usize,
        ) {
            let (kind, ..) = MAPPINGS[row];
            let (status, header) = status_of(kind);
            let error = error_of(status, Some(header), &text);
            prop_assert_eq!(error.kind(), kind);
            prop_assert_eq!(error.to_string(), text);
        }

        #[test]
        fn arbitrary_responses_become_errors(
            status: u16,
            header in any::<Option<String>>(),
            text in any::<String>(),
        ) {
            let error = error_of(status, header.as_deref(), &text);
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
