//! The messages between peers, as pure functions over bytes: no sockets, no HTTP library.
//!
//! Each arrow goes from the function that writes a message to the one that reads it:
//!
//! | file | request | response |
//! |---|---|---|
//! | `path` | [`KeyPath`] → [`parse_path`] | |
//! | `timeout` | [`timeout_millis`] → [`parse_timeout`] | |
//! | `body` | | [`encode_response`] → [`decode_response`] |
//! | `unchanged` | [`known_header`] → [`parse_known`] | [`encode_unchanged`] → [`decode_unchanged`] |
//! | `many` | [`many_request`] → [`decode_many_request`] | [`ManyBody`] → [`decode_many_response`] |
//! | `changes` | [`encode_keys`] → [`decode_keys`] | |
//! | | [`encode_change`] → [`decode_set`], [`decode_clear`], [`decode_drop`], [`decode_table`] | [`encode_change`] → [`decode_table`] |
//! | `status` | | [`status_of`] → [`error_of`] |
//!
//! Parts of these messages:
//!
//! - `key_hash`: a hash in a response that shows which key it is for.
//! - `known`: hashes in a request for several keys that show which values its sender has.
//! - `peers_mark`: a header that shows which list of peers its sender has.
//! - `head`: the end of an HTTP head, and values of headers.
//! - `numbers`: the numbers of each value in a response for several keys.
//! - `pieces`: a body whose values are not copied.

mod body;
mod changes;
#[cfg(all(test, not(larder_loom)))]
mod differential;
mod head;
mod key_hash;
mod known;
mod many;
mod numbers;
mod path;
mod peers_mark;
mod pieces;
mod status;
mod timeout;
mod unchanged;

#[cfg(larder_fuzz)]
pub(crate) use body::Decoded;
pub(crate) use body::{Fields, decode_response, encode_response, push_fields};
pub(crate) use changes::{
    CLEAR, DROP, MISDIRECTED, RECIPIENT_HEADER, REMOVAL_ID_HEADER, REMOVALS, REMOVE_KEYS,
    decode_clear, decode_drop, decode_keys, decode_set, decode_table, encode_change, encode_keys,
    parse_removal_id, recipient, verb_path,
};
pub(crate) use head::{Scan, has_token, parse_length, push_decimal, scan};
pub(crate) use key_hash::{KEY_HEADER, key_hash, key_header};
pub(crate) use known::known_hashes;
pub(crate) use many::{
    MAX_ERROR_TEXT, ManyBody, ManyValue, decode_many_request, decode_many_response, group_path,
    many_request, parse_group_path,
};
pub(crate) use path::{
    DEFAULT_BASE_PATH, KeyPath, PathError, PeerPath, check_base_path, key_path, parse_path,
};
pub(crate) use peers_mark::{LEAVE_PATH, LEAVING_HEADER, PEERS_HEADER, PEERS_PAGE, PeersMark};
pub use pieces::Body;
pub(crate) use status::{ERROR_HEADER, error_of, status_of};
pub(crate) use timeout::{TIMEOUT_HEADER, loading_after, parse_timeout, timeout_millis};
pub(crate) use unchanged::{
    KNOWN_HEADER, UNCHANGED_HEADER, decode_unchanged, encode_unchanged, known_header, parse_known,
    value_hash,
};

/// Whether a `Content-Type` is that of protobuf bodies. golang/groupcache sends exactly this type;
/// parameters after it are ignored.
pub(crate) fn is_protobuf(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|&byte| byte == b';');
    let essence = parts.next().unwrap_or_default();
    essence
        .trim_ascii()
        .eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
}

/// Whether a `Content-Encoding` says that the body is coded. No request asks for a coding.
pub(crate) fn is_encoded(content_encoding: &[u8]) -> bool {
    !matches!(content_encoding.trim_ascii(), [])
        && !content_encoding
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
}

/// The `Content-Type` of protobuf bodies.
pub(crate) const CONTENT_TYPE: &str = "application/x-protobuf";

/// The `Server` header of larder's responses (RFC 9110, section 10.2.4). A client of larder
/// recognises a server of larder by it: a proxy between the two sends its own name, or adds `Via`.
pub(crate) const SERVER: &str = "larder";
