//! Responds to the requests of peers, for this crate's server and for tiny_http.
//!
//! - This file: gets of one key. `many`: of several. `changes`: removals and sets.
//! - `reply`: a response, or a value with its fields.

mod changes;
mod many;
pub(crate) mod reply;

use std::time::Duration;

use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Group;
use crate::group::registry::Registry;
use crate::http::config::{Config, KnownPeers, MAX_BATCH_KEYS};
use crate::http::membership::{HANDOFF_WINDOW, MarkOf, Membership};
use crate::http::server::endpoint::many::ManyReply;
use crate::http::server::endpoint::reply::{Reply, ValueReply, fields_of};
use crate::http::server::handler::Request;
use crate::http::server::head::split_target;
use crate::http::server::response::Response;
use crate::http::server::wait::{LoadLimits, LoadWait};
use crate::panics::caught;
use crate::peers::PeerResponse;
use crate::sync::Arc;
use crate::wire::{self, Fields, PathError, PeerPath};

/// Makes the context of a peer's request, for example with a request id or a tighter deadline.
pub(crate) type ContextHook = dyn Fn(&Request<'_>) -> Context + Send + Sync;

/// Gives peers access to the groups of a registry, below the base path.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub registry: Registry,
    pub config: Arc<Config>,
    pub membership: Arc<Membership>,
    /// They may change data.
    pub peers: Arc<dyn KnownPeers>,
    /// Whether a raw `+` in a path is a space, as golang/groupcache's client sends it.
    pub plus_is_space: bool,
    pub context: Option<Arc<ContextHook>>,
}

impl Endpoint {
    /// Whether a request with this target, still escaped, is for the groups.
    pub(crate) fn owns(&self, target: &str) -> bool {
        split_target("GET", target).is_ok_and(|(path, _)| self.is_below_base(path))
    }

    pub(crate) fn is_below_base(&self, path: &str) -> bool {
        path.starts_with(&self.config.base_path)
    }

    /// The response to `request`, whose path is [below the base](Self::is_below_base).
    ///
    /// Does not unwind. Runs the context hook on this thread, and the getter on a loader thread.
    /// `limits` bounds the wait for the getter.
    pub(crate) fn respond(&self, request: &Request<'_>, limits: LoadLimits<'_>) -> Reply {
        // The reply is changed in place, because a large value would be moved otherwise.
        let mut reply = self.respond_unmarked(request, limits);
        let mark = request.head.peers_mark;
        let list = mark.and_then(|mark| self.membership.compare_header(mark));
        if list != Some(MarkOf::Same) || self.membership.is_held() {
            reply = self.with_headers(reply, list, mark.is_some());
        }
        reply
    }

    /// The reply with a header if this process leaves, and one for a client with another list of peers or
    /// with none.
    fn with_headers(&self, mut reply: Reply, list: Option<MarkOf>, has_mark: bool) -> Reply {
        let with_header = |reply: Reply, name, value: &str| {
            Reply::from(reply.into_response().with_own_header(name, value))
        };
        if self.membership.is_held() {
            reply = with_header(reply, wire::LEAVING_HEADER, "1");
        }
        match list {
            Some(MarkOf::Other | MarkOf::ThisProcess) => {
                with_header(reply, wire::PEERS_HEADER, &self.membership.own().header)
            }
            None if !has_mark => with_cache_status(reply),
            None | Some(MarkOf::Same) => reply,
        }
    }

    fn respond_unmarked(&self, request: &Request<'_>, limits: LoadLimits<'_>) -> Reply {
        let (base, path) = (&self.config.base_path, request.head.path);
        if request.head.method != "GET" {
            return self.respond_to_other(request, limits).into();
        }
        match wire::parse_path(base, path, self.plus_is_space) {
            Ok(path) if request.head.query == Some(EXPLAIN) => self.explain(request, &path).into(),
            Ok(path) => self.get(request, limits, &path),
            Err(_) if path.strip_prefix(base.as_str()) == Some(wire::PEERS_PAGE) => {
                self.peers_page(request).into()
            }
            Err(error) => {
                // A peer requests the base path to see whether this process answers.
                let is_probe = path == base && request.head.peers_mark.is_some();
                if is_probe && self.is_trusted(request.peer_addr) {
                    self.peers.note_probe();
                }
                bad_path(error).into()
            }
        }
    }

    /// The response to a request that is not a GET.
    fn respond_to_other(&self, request: &Request<'_>, limits: LoadLimits<'_>) -> Response {
        let (base, path) = (&self.config.base_path, request.head.path);
        if request.head.method == "POST" {
            if path.strip_prefix(base.as_str()) == Some(wire::LEAVE_PATH) {
                return self.note_leaving(request);
            }
            if let Some(group) = wire::parse_group_path(base, path, self.plus_is_space) {
                let response = group
                    .map_err(bad_path)
                    .and_then(|group| self.get_many(request, limits, &group));
                return response.unwrap_or_else(|error| error);
            }
        }
        self.change(request).unwrap_or_else(method_not_allowed)
    }

    /// The list of peers, a line for each.
    fn peers_page(&self, request: &Request<'_>) -> Response {
        if !self.is_trusted(request.peer_addr) {
            return Response::text(403, NOT_ALLOWED);
        }
        Response::text(200, self.membership.page(HANDOFF_WINDOW))
    }

    /// A peer announces that it leaves.
    fn note_leaving(&self, request: &Request<'_>) -> Response {
        if !self.is_trusted(request.peer_addr) {
            return Response::text(403, NOT_ALLOWED);
        }
        let id = std::str::from_utf8(request.body);
        match id.is_ok_and(|id| self.peers.leave(id)) {
            true => Response::text(200, ""),
            false => Response::text(404, "there is no peer with this id in the list"),
        }
    }

    fn get(&self, request: &Request<'_>, limits: LoadLimits<'_>, path: &PeerPath<'_>) -> Reply {
        let hash = wire::key_hash(&path.group, &path.key);
        let (group, timeout) = match (self.group(&path.group), timeout_of(request)) {
            (Ok(group), Ok(timeout)) => (group, timeout),
            (Err(error), _) | (_, Err(error)) => return with_key(error, hash),
        };
        let known = request.head.known_value;
        let unix_nanos = || group.clock().unix_nanos();
        // A cached value needs no context. But if there is a hook, it runs for each request for one
        // key.
        if self.context.is_none() {
            if let Some(found) = group.serve_peer_cached(&path.key) {
                return reply_with(found, hash, known, unix_nanos);
            }
        }
        // The times of the response count from the arrival of the request.
        let arrived = unix_nanos();
        let wait = LoadWait::new(limits, timeout);
        match self.load(request, wait, &group, &path.key) {
            Ok(found) => reply_with(found, hash, known, || arrived),
            Err(error) => with_key(error, hash),
        }
    }

    /// The explanation of a key, for the operator.
    fn explain(&self, request: &Request<'_>, path: &PeerPath<'_>) -> Response {
        if !self.is_trusted(request.peer_addr) {
            return Response::text(403, NOT_ALLOWED);
        }
        // It asks the program's picker, which may panic.
        let explained = |group: Group| caught(|| group.explain(&path.key).to_string());
        match self.group(&path.group).map(explained) {
            Ok(Some(text)) => Response::text(200, text),
            Ok(None) => Response::text(500, "the picker of peers panicked"),
            Err(error) => error,
        }
    }

    /// Responds to a request for several keys. Unless the request says that they are to be loaded, the
    /// response is from the store alone: a key that would have to be loaded never delays the others, and
    /// neither the getter nor the context hook runs.
    fn get_many(
        &self,
        request: &Request<'_>,
        limits: LoadLimits<'_>,
        name: &str,
    ) -> Result<Response, Response> {
        let group = self.group(name)?;
        let timeout = timeout_of(request)?;
        let asked = wire::decode_many_request(request.body, MAX_BATCH_KEYS)
            .map_err(|why| Response::text(400, format!("not a GetManyRequest: {why}")))?;
        let wanted = asked.max_bytes.and_then(|most| usize::try_from(most).ok());
        let most = self.config.max_batch_bytes;
        let room = wanted.map_or(most, |wanted| wanted.min(most));
        // The other keys are reported as missing.
        let answered = &asked.keys[..asked.keys.len().min(self.config.max_batch_keys)];
        let mut reply = ManyReply::new(name, &asked, room);
        if asked.load == Some(true) {
            let wait = LoadWait::new(limits, timeout);
            let keys = answered.iter().map(|key| &**key).enumerate();
            let keys: Vec<(usize, &str)> = keys.collect();
            let each = &mut |at, loaded| reply.add(at, loaded);
            self.load_many(request, wait, &group, &keys, each)?;
        } else {
            for (at, key) in answered.iter().enumerate() {
                let cached = reply.has_room().then(|| group.serve_peer_cached(key));
                if let Some(cached) = cached.flatten() {
                    reply.add(at, Ok(cached));
                }
            }
        }
        Ok(Response::new(200, wire::CONTENT_TYPE, reply.finish()))
    }

    /// Loads the keys of a batch. Those that are not loaded in time get the error of the wait.
    fn load_many(
        &self,
        request: &Request<'_>,
        mut wait: LoadWait<'_>,
        group: &Group,
        keys: &[(usize, &str)],
        each: &mut dyn FnMut(usize, Result<PeerResponse>),
    ) -> Result<(), Response> {
        let ctx = self.load_context(request, &wait)?;
        let mut late = Vec::new();
        let loaded = caught(|| {
            group.serve_client_many(&ctx, keys, &mut wait, &mut |at, result| match result {
                Err(error) if error.kind() == ErrorKind::DeadlineExceeded => late.push(at),
                result => each(at, result),
            });
        });
        caught(move || drop(ctx));
        if loaded.is_none() {
            late = keys.iter().map(|(at, _)| *at).collect();
        }
        let end = match (loaded, wait.end) {
            (None, _) => ErrorKind::GetterPanicked,
            (Some(()), end) => end.unwrap_or(ErrorKind::DeadlineExceeded),
        };
        late.into_iter().for_each(|at| each(at, Err(end.into())));
        Ok(())
    }

    #[inline]
    pub(super) fn group(&self, name: &str) -> Result<Group, Response> {
        self.registry.get_group(name).ok_or_else(|| {
            let message = format!("there is no group {name:?} here");
            failed(&Error::new(ErrorKind::UnknownGroup, message))
        })
    }

    /// Loads a value in the program's context for this request, with the caller's deadline.
    ///
    /// The clients of golang/groupcache send no deadline. Then the getter has none, but the wait for it
    /// has.
    fn load(
        &self,
        request: &Request<'_>,
        mut wait: LoadWait<'_>,
        group: &Group,
        key: &str,
    ) -> Result<PeerResponse, Response> {
        let ctx = self.load_context(request, &wait)?;
        let loaded = caught(|| group.serve_client(&ctx, key, &mut wait));
        // The drop of a value of the context may panic. The response is that of the load all the same.
        caught(move || drop(ctx));
        let loaded = match (wait.end, loaded) {
            (Some(end), _) => Err(end.into()),
            (None, Some(loaded)) => loaded,
            (None, None) => Err(ErrorKind::GetterPanicked.into()),
        };
        loaded.map_err(|error| failed(&error))
    }

    /// The program's context for a request, with the deadline of its caller.
    fn load_context(
        &self,
        request: &Request<'_>,
        wait: &LoadWait<'_>,
    ) -> Result<Context, Response> {
        let ctx = match &self.context {
            Some(hook) => caught(|| hook(request))
                .ok_or_else(|| Response::text(500, "the context hook panicked"))?,
            None => Context::background(),
        };
        Ok(match wait.has_timeout {
            true => ctx.with_deadlines(wait.deadline, wait.load_deadline),
            false => ctx,
        })
    }
}

/// The time that the caller has left; `None` if the request has no such header.
fn timeout_of(request: &Request<'_>) -> Result<Option<Duration>, Response> {
    match request.head.timeout {
        Some(None) => Err(Response::text(400, "the time-out is not a number")),
        timeout => Ok(timeout.flatten()),
    }
}

/// The reply with the value of the key with this hash, or without it if the client has the one with the hash
/// `known`. `now` is the wall clock at the begin of the times.
#[inline]
fn reply_with(
    found: PeerResponse,
    hash: u64,
    known: Option<u64>,
    now: impl FnOnce() -> i64,
) -> Reply {
    let mut fields = fields_of(&found);
    let expire = |ttl| now().saturating_add_unsigned(ttl);
    fields.expire_unix_nanos = fields.ttl_nanos.map(expire);
    if known.is_some_and(|known| known == wire::value_hash(hash, &found.value)) {
        return unchanged(hash, &fields).into();
    }
    Reply::Value(ValueReply {
        key_hash: hash,
        value: found.value,
        fields,
    })
}

/// A 304 with the fields of a value that the client has cached.
fn unchanged(key_hash: u64, fields: &Fields) -> Response {
    let fields = wire::encode_unchanged(key_hash, fields);
    Response::text(304, "").with_own_header(wire::UNCHANGED_HEADER, fields)
}

/// An error that says which key it answers.
#[cold]
fn with_key(error: Response, hash: u64) -> Reply {
    let marked = error.with_own_header(wire::KEY_HEADER, wire::key_header(hash));
    marked.into()
}

pub(super) fn failed(error: &Error) -> Response {
    let (status, code) = wire::status_of(error.kind());
    Response::text(status, error.to_string()).with_own_header(wire::ERROR_HEADER, code)
}

pub(super) fn bad_path(error: PathError) -> Response {
    match error {
        PathError::Malformed(why) => Response::text(400, why),
        PathError::Outside => Response::text(404, "there is nothing here"),
    }
}

/// The reply with the header of RFC 9211 if it has a value, for clients other than larder's.
fn with_cache_status(reply: Reply) -> Reply {
    let Reply::Value(value) = &reply else {
        return reply;
    };
    let mut status = String::from(match value.fields.load_micros {
        None => "larder; hit",
        // Whether it was stored is not known here: it may have been too large, or removed meanwhile.
        Some(_) => "larder; fwd=miss",
    });
    if let Some(nanos) = value.fields.ttl_nanos {
        status += &format!("; ttl={}", nanos / 1_000_000_000);
    }
    reply
        .into_response()
        .with_own_header("Cache-Status", status)
        .into()
}

fn method_not_allowed() -> Response {
    Response::text(405, "a key has the methods GET, PUT and DELETE")
        .with_own_header("Allow", "GET, PUT, DELETE")
}

/// The query of a key's path that asks for its explanation.
const EXPLAIN: &str = "explain";

pub(super) const NOT_ALLOWED: &str = "only this machine and the peers in the list may do this";
