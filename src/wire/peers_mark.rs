//! The mark with which a process says which list of peers it has, and which process it is.

use std::fmt;

/// The header of requests that carries the sender's [`PeersMark`]. A response has it only if the list
/// differs, or if sender and receiver are one process.
pub(crate) const PEERS_HEADER: &str = "larder-peers";

/// The path, below the base path, of the page with the list of peers. It has one segment, so it is no
/// key of a group.
pub(crate) const PEERS_PAGE: &str = "_peers";

/// The path, below the base path, of the request with which a process announces that it leaves. Its body
/// is the id of the process in the list of peers.
pub(crate) const LEAVE_PATH: &str = "_leave/";

/// The header of the responses of a process that is not to be asked for its keys: it leaves, or has just
/// started.
pub(crate) const LEAVING_HEADER: &str = "larder-leaving";

/// Identifies a list of peers, and the process that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeersMark {
    /// A hash of the list and of the way in which keys are assigned. Equal lists have equal ones, in
    /// whatever order they are written.
    pub(crate) fingerprint: u64,
    /// A random number that a process makes for each of its pools.
    pub(crate) instance: u64,
}

impl PeersMark {
    /// Reads the value of [`PEERS_HEADER`]; `None` if it is not one.
    pub(crate) fn parse(header: &str) -> Option<PeersMark> {
        let (fingerprint, instance) = header.split_once('-')?;
        Some(PeersMark {
            fingerprint: parse_hex(fingerprint)?,
            instance: parse_hex(instance)?,
        })
    }
}

impl fmt::Display for PeersMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.fingerprint, self.instance)
    }
}

fn parse_hex(digits: &str) -> Option<u64> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || matches!(digit, b'a'..=b'f');
    let is_whole = digits.len() == 16 && digits.bytes().all(is_hex);
    is_whole.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_read_as_it_was_written() {
        let mark = PeersMark {
            fingerprint: 0x1f,
            instance: u64::MAX,
        };
        assert_eq!(mark.to_string(), "000000000000001f-ffffffffffffffff");
        assert_eq!(PeersMark::parse(&mark.to_string()), Some(mark));
    }

    #[test]
    fn other_texts_are_no_marks() {
        for text in [
            "",
            "-",
            "1f-1f",
            "000000000000001F-ffffffffffffffff",
            "+00000000000001f-ffffffffffffffff",
            "000000000000001f-ffffffffffffffff-",
            "000000000000001fffffffffffffffff",
        ] {
            assert_eq!(PeersMark::parse(text), None, "{text:?}");
        }
    }
}
