//! What a peer's request is answered: the part that every front (our server, tiny_http) shares.

use std::time::Duration;

use super::handler::Request;
use super::head::{Reject, split_target};
use super::response::{Framing, Response, push_ok_head};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::panics::caught;
use crate::peers::PeerResponse;
use crate::registry::Registry;
use crate::sync::Arc;
use crate::wire::{self, ManyBody, PathError, Prefix, SHORT};

/// Makes the context in which a peer's request is answered: request ids, tighter deadlines.
pub(crate) type ContextHook = dyn Fn(&Request<'_>) -> Context + Send + Sync;

/// The place where peers reach the groups of a registry.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub registry: Registry,
    /// Begins and ends with a slash.
    pub base_path: String,
    /// Whether a raw `+` in a path is a space, as golang/groupcache's client means it.
    pub plus_is_space: bool,
    pub context: Option<Arc<ContextHook>>,
    /// What one shared exchange may ask for and get.
    pub shared: SharedLimits,
}

/// The bounds of a shared exchange; see the setters of `HttpPoolBuilder`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedLimits {
    pub max_keys: usize,
    /// Of the values in an answer.
    pub max_bytes: usize,
}

impl SharedLimits {
    /// The most bytes of the keys in a request: well below what servers take as a body.
    pub(crate) fn max_key_bytes(&self) -> usize {
        self.max_bytes.min(MAX_KEY_BYTES)
    }

    /// The bytes of the longest answer.
    pub(crate) fn max_answer(&self) -> usize {
        let around = self.max_keys.saturating_mul(MAX_AROUND);
        self.max_bytes.saturating_add(around)
    }
}

/// An answer, ready to be written.
pub(crate) enum Answer {
    /// A cached value, and the protobuf bytes that come before it.
    Value { prefix: Prefix, value: ByteView },
    /// The cached values of several keys.
    Many(ManyBody),
    /// Everything else.
    Other(Response),
}

impl Endpoint {
    /// Whether a request with this target, as it was sent, is for the groups.
    pub(crate) fn owns(&self, target: &str) -> bool {
        split_target("GET", target).is_ok_and(|(path, _)| path.starts_with(&self.base_path))
    }

    /// Answers `request`; `None` if its path is not below the base path.
    ///
    /// Does not unwind. Runs user code on this thread: the context hook, and the getter if the
    /// request has no deadline.
    pub(crate) fn answer(&self, request: &Request<'_>) -> Option<Answer> {
        if request.method() == "POST" {
            let group = wire::parse_group_path(&self.base_path, request.path(), self.plus_is_space);
            if let Some(group) = group {
                let answer = group
                    .map_err(bad_path)
                    .and_then(|group| self.get_many(request, &group));
                return Some(answer.unwrap_or_else(Answer::Other));
            }
        }
        let path = wire::parse_path(&self.base_path, request.path(), self.plus_is_space);
        let response = match path {
            Err(PathError::Outside) => return None,
            _ if request.method() != "GET" => method_not_allowed(),
            Err(error) => bad_path(error),
            Ok(path) => match self.get(request, &path.group, &path.key) {
                Ok(answer) => return Some(answer),
                Err(response) => response,
            },
        };
        Some(Answer::Other(response))
    }

    fn get(&self, request: &Request<'_>, group: &str, key: &str) -> Result<Answer, Response> {
        let group = self.group(group)?;
        let timeout = timeout_of(request)?;
        // Without a hook nobody sees the context of a get that loads nothing.
        let cached = match self.context {
            None => group.serve_peer_cached(key),
            Some(_) => None,
        };
        let found = match cached {
            Some(found) => found,
            None => {
                let ctx = self.context_of(request, timeout)?;
                load(&group, ctx, key).map_err(|error| failed(&error))?
            }
        };
        let ttl_nanos = found.ttl.map(nanos);
        let expire = ttl_nanos.map(|ttl| group.clock().unix_nanos().saturating_add_unsigned(ttl));
        Ok(Answer::Value {
            prefix: wire::response_prefix(found.value.len(), ttl_nanos, expire, found.minute_qps),
            value: found.value,
        })
    }

    /// Answers a shared exchange: from the store alone, so that a key that would have to be loaded
    /// never keeps the others waiting. Neither the getter nor the context hook runs.
    fn get_many(&self, request: &Request<'_>, group: &str) -> Result<Answer, Response> {
        let group = self.group(group)?;
        let asked = wire::decode_many_request(request.body(), MAX_KEYS)
            .map_err(|why| Response::text(400, format!("not a GetManyRequest: {why}")))?;
        let wanted = asked.max_bytes.map(usize::try_from);
        let mut room = match wanted {
            Some(Ok(wanted)) => wanted.min(self.shared.max_bytes),
            _ => self.shared.max_bytes,
        };
        let mut body = ManyBody::default();
        for (n, key) in asked.keys.iter().enumerate() {
            // What does not fit is asked for singly, as what is not here.
            let fits = |found: &PeerResponse| found.value.len() <= room;
            let look = n < self.shared.max_keys && room > 0;
            let found = look.then(|| group.serve_peer_cached(key)).flatten();
            match found.filter(fits) {
                Some(found) => {
                    room -= found.value.len();
                    body.push(found.value, found.ttl.map(nanos));
                }
                None => body.push_missing(),
            }
        }
        Ok(Answer::Many(body.finish()))
    }

    fn group(&self, name: &str) -> Result<Group, Response> {
        self.registry.get_group(name).ok_or_else(|| {
            let message = format!("there is no group {name:?} here");
            failed(&Error::new(ErrorKind::UnknownGroup, message))
        })
    }

    /// The program's context for this request, ended when the caller's time is over.
    fn context_of(
        &self,
        request: &Request<'_>,
        timeout: Option<Duration>,
    ) -> Result<Context, Response> {
        let base = match &self.context {
            Some(hook) => caught(|| hook(request))
                .ok_or_else(|| Response::text(500, "the context hook panicked"))?,
            None => Context::background(),
        };
        Ok(match timeout {
            Some(timeout) => base.with_timeout(timeout),
            None => base,
        })
    }
}

/// The time that the caller has left. Golang's clients do not tell: then a load runs on this
/// connection's thread, for as long as it takes.
fn timeout_of(request: &Request<'_>) -> Result<Option<Duration>, Response> {
    let mut headers = request.headers();
    let header = headers.find(|(name, _)| name.eq_ignore_ascii_case(wire::TIMEOUT_HEADER));
    match header {
        None => Ok(None),
        Some((_, value)) => wire::parse_timeout(value)
            .map(Some)
            .ok_or_else(|| Response::text(400, "the time-out is not a number")),
    }
}

impl Answer {
    /// Appends head and prefix to `out`, and a short value; returns what has to be sent after them.
    pub(crate) fn encode(&self, framing: Framing, out: &mut Vec<u8>) -> Rest<'_> {
        match self {
            Answer::Value { prefix, value } => {
                let len = prefix.len() + value.len();
                push_ok_head(out, wire::CONTENT_TYPE, len, framing);
                out.extend_from_slice(prefix);
                if value.len() <= SHORT {
                    out.extend_from_slice(value);
                    return Rest::One(&[]);
                }
                Rest::One(value)
            }
            Answer::Many(body) => {
                push_ok_head(out, wire::CONTENT_TYPE, body.len(), framing);
                Rest::Many(body)
            }
            Answer::Other(response) => Rest::One(response.encode(framing, out)),
        }
    }
}

/// What is sent after the head of an answer, from where it lies.
pub(crate) enum Rest<'a> {
    One(&'a [u8]),
    Many(&'a ManyBody),
}

impl From<Reject> for Response {
    fn from(reject: Reject) -> Self {
        Response::text(reject.status, reject.reason)
    }
}

/// A getter that runs on this thread may panic through the group. The connection is not the
/// getter's, so it goes on, and the peer is told.
fn load(group: &Group, ctx: Context, key: &str) -> Result<PeerResponse> {
    // The context is dropped inside, as the drop of its values may panic too.
    caught(move || group.serve_peer(&ctx, key))
        .unwrap_or_else(|| Err(ErrorKind::GetterPanicked.into()))
}

fn failed(error: &Error) -> Response {
    let (status, code) = wire::status_of(error.kind());
    Response::text(status, error.to_string()).with_own_header(wire::ERROR_HEADER, code)
}

fn bad_path(error: PathError) -> Response {
    match error {
        PathError::Malformed(why) => Response::text(400, why),
        // Asked of paths below the base path.
        PathError::Outside => Response::text(404, "there is nothing here"),
    }
}

fn nanos(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)
}

fn method_not_allowed() -> Response {
    Response::text(405, "peers are asked with GET").with_own_header("Allow", "GET")
}

const MAX_KEY_BYTES: usize = 64 << 10;

/// What is around a value in the answer of a shared exchange: tag and length, state, time to live.
const MAX_AROUND: usize = 32;

/// The most keys that are read of one request, whatever is asked, which bounds its memory to 100 KiB. Those over
/// [`SharedLimits::max_keys`] are answered as missing.
const MAX_KEYS: usize = 4096;
