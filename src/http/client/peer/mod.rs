//! A peer that is asked over HTTP: the requests, and what follows from each response.
//!
//! - This file: the requests for one key, and for a batch.
//! - `messages`: reads the responses, with their fields, and the errors.
//! - `batch`: the keys of several threads in one request. `batch_values`: its response.
//! - `many`: several keys that one caller asks for.
//! - `revalidate`: a request for a value that is cached already.
//! - `changes`: the requests that change data at the peer.
//! - `list_check`: notices that the peer has another list of peers.
//! - `health`: the probe and the report of the peer.
//! - `permits`: limits the requests that are under way.

pub(crate) mod batch;
mod batch_values;
mod changes;
mod health;
pub(crate) mod list_check;
mod many;
mod messages;
mod permits;
mod revalidate;

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::heap::SharedBytes;
use crate::http::client::health::PeerHealth;
use crate::http::client::health::exchange::ObservedExchange;
use crate::http::client::health::watch::Watch;
use crate::http::client::peer::batch::{BatchRole, Batcher};
use crate::http::client::peer::batch_values::{
    BatchError, BatchOf, BatchPolicy, BatchResult, BatchValues, known_hashes,
};
use crate::http::client::peer::permits::{Permit, Permits};
use crate::http::client::transport::target::Target;
use crate::http::client::transport::url::PeerUrl;
use crate::http::client::transport::{
    DefaultTransport, IdleConnections, Transport, TransportRequest,
};
use crate::http::config::Config;
use crate::http::membership::Membership;
use crate::pb::{ClearRequest, GetRequest, RemovalTable, RemoveKeysRequest, SetRequest};
use crate::peers::{PeerResponse, ProtoGetter};
use crate::sync::Arc;
use crate::sync::atomic::AtomicU64;
use crate::wire;

/// One peer.
///
/// A failure between this process and the peer is [`ErrorKind::Peer`] and names the peer. An error
/// of the peer's getter is returned unchanged. Only [`ErrorKind::Peer`] is a sign of the peer's
/// health.
pub(crate) struct HttpPeer {
    url: PeerUrl,
    /// The name of the peer in the changes that it gets.
    recipient: String,
    /// The path of the peer's URL and the base path: the part of a request's path before the group.
    base: String,
    config: Arc<Config>,
    /// The time-out header of a request with the whole exchange time-out left, as most requests
    /// have.
    full_timeout: String,
    target: Arc<Target>,
    transport: Arc<dyn Transport>,
    /// The idle connections of the default transport, which `transport` may wrap.
    connections: Arc<dyn IdleConnections>,
    /// Limits the requests under way, because the peer's server refuses connections over its own
    /// limit.
    permits: Permits,
    batcher: Batcher<BatchResult>,
    policy: BatchPolicy,
    membership: Arc<Membership>,
    made: Instant,
    /// The end of the time for which it [is this process](Self::is_this_process), in nanoseconds since
    /// `made`; 0 if it never was.
    here_until: AtomicU64,
    health: Arc<PeerHealth>,
    watch: Arc<Watch>,
}

impl HttpPeer {
    pub(crate) fn new(
        target: Arc<Target>,
        id: &str,
        membership: Arc<Membership>,
        by: DefaultTransport,
        watch: Arc<Watch>,
    ) -> Self {
        let (url, config) = (&target.url, &target.config);
        HttpPeer {
            url: url.clone(),
            recipient: wire::recipient(id),
            base: format!("{}{}", url.prefix(), config.base_path),
            config: config.clone(),
            full_timeout: wire::timeout_millis(config.exchange_timeout).to_string(),
            transport: by.transport,
            connections: by.connections,
            permits: Permits::new(config.max_connections_per_peer),
            batcher: Batcher::new(
                config.max_batch_keys,
                config.max_batch_key_bytes(),
                config.max_connections_per_peer,
            ),
            policy: BatchPolicy::new(config.max_batch_keys > 1),
            health: Arc::new(PeerHealth::new(config.exchange_timeout)),
            watch,
            target,
            membership,
            made: Instant::now(),
            here_until: AtomicU64::new(0),
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    fn base(&self) -> &str {
        &self.base
    }

    fn transport(&self) -> &dyn Transport {
        &*self.transport
    }
}

impl ProtoGetter for HttpPeer {
    /// Asks for one key, in a batch with the keys of other threads if there are many.
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse> {
        let (group, key) = (&*request.group, &*request.key);
        let now = Instant::now();
        let deadline = self.deadline(ctx, now)?;
        if !self.policy.pays_off() {
            return self.get_single(ctx, group, key, now, deadline, None);
        }
        let (result, place) = match self.batcher.join(group, key, deadline, Instant::now) {
            BatchRole::Single(_guard) => {
                return self.get_single(ctx, group, key, now, deadline, None);
            }
            BatchRole::TimedOut => return Err(self.timed_out(ctx)),
            BatchRole::Waiter(result, place) => (result, place),
            BatchRole::Leader(mut leader) => {
                let keys = leader.keys();
                let result = self.send_batch(ctx, group, &keys, &[], deadline, BatchOf::Cached);
                let result = Arc::new(result);
                leader.set_result(result.clone());
                (Some(result), leader.place())
            }
        };
        match result.as_deref() {
            Some(Ok(values)) => {
                if let Some(value) = values.get(place) {
                    return Ok(value);
                }
            }
            Some(Err(BatchError::Peer(error))) => return Err(error.clone()),
            // A time-out of the peer is the result for all. If only the leader's own time was over, this caller
            // may have time left, and asks by itself.
            Some(Err(BatchError::Failed {
                error,
                timed_out: true,
            })) if error.kind() == ErrorKind::Peer => return Err(error.clone()),
            Some(Err(BatchError::Fallback | BatchError::Failed { .. })) | None => {}
        }
        drop(result);
        self.get_single(ctx, group, key, Instant::now(), deadline, None)
    }

    fn revalidate(
        &self,
        ctx: &Context,
        request: &GetRequest<'_>,
        old: &ByteView,
    ) -> Result<PeerResponse> {
        self.get_newer(ctx, request, old)
    }

    fn get_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        let answers = self.ask_for_many(ctx, group, keys, &[], BatchOf::Peeks)?;
        let value = |answer: Option<Result<PeerResponse>>| answer?.ok();
        Ok(answers.into_iter().map(value).collect())
    }

    fn load_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        self.ask_for_many(ctx, group, keys, &[], BatchOf::Loads)
    }

    fn revalidate_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        olds: &[Option<ByteView>],
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        self.ask_for_many(ctx, group, keys, olds, BatchOf::Loads)
    }

    fn remove(&self, ctx: &Context, request: &RemoveKeysRequest<'_>) -> Result<()> {
        self.remove_keys(ctx, request)
    }

    fn set(&self, ctx: &Context, request: &SetRequest<'_>) -> Result<()> {
        self.set_value(ctx, request)
    }

    fn clear(&self, ctx: &Context, request: &ClearRequest<'_>) -> Result<()> {
        self.clear_group(ctx, request)
    }

    fn exchange_removals(
        &self,
        ctx: &Context,
        request: &RemovalTable<'_>,
    ) -> Result<RemovalTable<'static>> {
        self.exchange_tables(ctx, request)
    }

    fn url(&self) -> String {
        self.url.to_string()
    }

    fn honors_deadline(&self) -> bool {
        true
    }
}

impl HttpPeer {
    /// Asks for one key by a request of its own. An `old` value need not be sent again.
    fn get_single(
        &self,
        ctx: &Context,
        group: &str,
        key: &str,
        now: Instant,
        deadline: Instant,
        old: Option<&ByteView>,
    ) -> Result<PeerResponse> {
        let permit = self.permit(ctx, deadline)?;
        let now = permit.waited_until.unwrap_or(now);
        if now >= deadline {
            return Err(self.timed_out(ctx));
        }
        let full = self.config.exchange_timeout;
        let timeout = match deadline == now + full {
            true => self.full_timeout.as_str().into(),
            false => wire::timeout_millis(deadline - now).to_string().into(),
        };
        let own = self.membership.own();
        let path = wire::KeyPath::new(&self.base, group, key);
        let mut request = TransportRequest::get_key(path, &own.header, timeout, deadline);
        let hash = wire::key_hash(group, key);
        if let Some(old) = old {
            let known = wire::known_header(wire::value_hash(hash, old));
            request.set_checked(wire::KNOWN_HEADER.into(), known.into());
        }
        let exchange = ObservedExchange::new(&self.health, &self.watch, now);
        let response = match self.transport.round_trip(ctx, request) {
            Ok(response) => response,
            Err(error) => return Err(exchange.failed(error)),
        };
        if response.is_from_larder() {
            self.policy.resume();
        }
        self.note_mark(&response);
        if let Some(old) = old.filter(|_| response.status() == 304) {
            if let Some(renewed) = self.renewed(ctx, exchange, response, hash, old)? {
                return Ok(renewed);
            }
            drop(permit);
            return self.get_single(ctx, group, key, Instant::now(), deadline, None);
        }
        if response.status() != 200 {
            return Err(self.end_with_error(exchange, response, Some(hash)));
        }
        let result = self.value_of(ctx, response, hash);
        match &result {
            Ok(response) => {
                exchange.answered(response.load_time);
                self.policy.note_len(response.value.len());
                result
            }
            Err(_) => result.map_err(|error| exchange.failed(error)),
        }
    }

    /// Sends one batched request and reads its response. `olds` has the values that the peer need not send
    /// again.
    fn send_batch(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        olds: &[Option<ByteView>],
        deadline: Instant,
        of: BatchOf,
    ) -> Result<BatchValues, BatchError> {
        let load = of == BatchOf::Loads;
        let failed = |error: Error| {
            log::debug!("{error}");
            let timed_out = is_timeout(&error) || Instant::now() >= deadline;
            BatchError::Failed { error, timed_out }
        };
        let permit = self.permit(ctx, deadline).map_err(failed)?;
        let known = known_hashes(group, keys, olds);
        let body = wire::many_request(keys, self.config.max_batch_bytes, load, &known);
        let body = body.map_err(failed)?;
        let path = wire::group_path(&self.base, group);
        let own = self.membership.own();
        let mut request =
            TransportRequest::batch(path, &body, deadline).with_peers_mark(&own.header);
        request.set_checked("content-type".into(), wire::CONTENT_TYPE.into());
        if load {
            request.set_time_left();
        }
        let began = permit.waited_until.unwrap_or_else(Instant::now);
        let mut exchange = ObservedExchange::new(&self.health, &self.watch, began);
        exchange.is_peek = of == BatchOf::Peeks;
        let response = match self.transport.round_trip(ctx, request) {
            Ok(response) => response,
            Err(error) => return Err(failed(exchange.failed(error))),
        };
        self.note_mark(&response);
        let status = response.status();
        if status != 200 {
            let is_larder = response.header(wire::ERROR_HEADER).is_some();
            let error = self.end_with_error(exchange, response, None);
            return Err(self.refused_batch(is_larder, status, error));
        }
        if !response.is_protobuf() {
            log::debug!("{}", self.not_protobuf(&response));
            return Err(BatchError::Fallback);
        }
        let max = self.config.max_batch_body();
        let body = match self.read_message(ctx, response, max) {
            Ok(body) => body,
            Err(error) => return Err(failed(exchange.failed(error))),
        };
        let values = self.batch_values(body, group, keys, olds)?;
        match load {
            false => exchange.answered(Duration::ZERO),
            // How long the loads took is not known.
            true => exchange.answered_untimed(),
        }
        self.policy.note_success(values.mean_len());
        Ok(values)
    }

    fn batch_values(
        &self,
        body: SharedBytes,
        group: &str,
        keys: &[&str],
        olds: &[Option<ByteView>],
    ) -> Result<BatchValues, BatchError> {
        let hashes = keys.iter().map(|key| wire::key_hash(group, key));
        let slots = wire::decode_many_response(&body, hashes).map_err(|error| {
            // It answers 200 to anything, so it is not a larder server; or it answers other keys.
            self.connections.close_idle();
            self.unsupported_batch(error)
        })?;
        let olds = olds.to_vec();
        Ok(BatchValues { body, slots, olds })
    }

    /// The error of a batch whose response has another status than 200.
    fn refused_batch(&self, is_larder: bool, status: u16, error: Error) -> BatchError {
        match (is_larder, status) {
            (true, _) if error.kind() == ErrorKind::UnknownGroup => BatchError::Peer(error),
            (false, 400 | 404 | 405 | 411 | 415 | 501) => self.unsupported_batch(error),
            // Other statuses can be temporary: the peer is overloaded or too slow.
            _ => {
                log::debug!("{error}");
                BatchError::Fallback
            }
        }
    }

    fn unsupported_batch(&self, error: Error) -> BatchError {
        log::debug!("{error}");
        self.policy.pause();
        BatchError::Fallback
    }

    /// The time by which a request that begins `now` must have ended.
    ///
    /// # Errors
    ///
    /// If `ctx` has ended.
    fn deadline(&self, ctx: &Context, now: Instant) -> Result<Instant> {
        if let Some(ended) = ctx.err() {
            return Err(ended);
        }
        let exchange_end = now + self.config.exchange_timeout;
        let own = ctx.deadline().unwrap_or(exchange_end);
        Ok(own.min(exchange_end))
    }

    /// Waits for the permit to use a connection. It is held until the response is read, or its
    /// connection closed.
    fn permit(&self, ctx: &Context, deadline: Instant) -> Result<Permit<'_>> {
        let permit = self.permits.acquire(deadline);
        permit.ok_or_else(|| ctx.err().unwrap_or_else(|| self.failure(ALL_BUSY)))
    }

    /// Sends batches again, if they were paused: the list of peers was set.
    pub(crate) fn reset_batches(&self) {
        self.policy.reset();
    }

    /// The error for a request whose deadline has passed.
    fn timed_out(&self, ctx: &Context) -> Error {
        ctx.err().unwrap_or_else(|| {
            let limit = self.config.exchange_timeout;
            self.failure(format_args!("no answer within {limit:?}"))
        })
    }

    /// A failure that concerns this key or the options of this process, not the peer's health.
    fn refusal(&self, why: &'static str) -> Error {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, why);
        Error::with_source(ErrorKind::Peer, format_args!("peer {}", self.url), cause)
    }

    fn failure(&self, why: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Peer, format!("peer {}: {why}", self.url))
    }
}

impl fmt::Debug for HttpPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpPeer").field(&self.url).finish()
    }
}

/// Whether an exchange, or its connection, took too long.
fn is_timeout(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    error.kind() == ErrorKind::DeadlineExceeded
        || cause.is_some_and(|cause: &io::Error| cause.kind() == io::ErrorKind::TimedOut)
}

const ALL_BUSY: &str = "all connections to it stayed busy; see max_connections_per_peer";
