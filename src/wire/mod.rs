//! What peers say to each other, as pure functions over bytes: no sockets, no HTTP library.
//!
//! The server and the client stand on either side of each pair:
//!
//! | file | request | answer |
//! |---|---|---|
//! | `path` | [`key_path`] → [`parse_path`] | |
//! | `timeout` | [`timeout_millis`] → [`parse_timeout`] | |
//! | `body` | | [`response_prefix`] → [`decode_response`] |
//! | `many` | [`many_request`] → [`decode_many_request`] | [`ManyBody`] → [`decode_many_response`] |
//! | `status` | | [`status_of`] → [`error_of`] |

mod body;
#[cfg(all(test, not(larder_loom)))]
mod differential;
mod many;
mod path;
pub(crate) mod repeat;
mod search;
mod status;
mod timeout;

pub(crate) use body::{Decoded, Prefix, decode_response, response_prefix};
pub(crate) use many::{
    ManyBody, ManyValue, SHORT, decode_many_request, decode_many_response, group_path,
    many_request, parse_group_path,
};
pub(crate) use path::{DEFAULT_BASE_PATH, PathError, check_base_path, key_path, parse_path};
pub(crate) use search::{find_byte, find_control, find_space};
pub(crate) use status::{ERROR_HEADER, error_of, status_of};
pub(crate) use timeout::{TIMEOUT_HEADER, parse_timeout, timeout_millis};

/// Whether a `Content-Type` is that of protobuf bodies. golang/groupcache sends exactly this type;
/// parameters behind it change nothing.
pub(crate) fn is_protobuf(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|&byte| byte == b';');
    let essence = parts.next().unwrap_or_default();
    essence
        .trim_ascii()
        .eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
}

/// The `Content-Type` of protobuf bodies.
pub(crate) const CONTENT_TYPE: &str = "application/x-protobuf";

/// The `Server` of our own answers (RFC 9110, section 10.2.4). To a client of ours it says who speaks
/// HTTP at the other end of the connection: proxies between the two put their own name there, or
/// themselves into `Via`.
pub(crate) const SERVER: &str = "larder";
