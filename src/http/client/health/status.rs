//! The public report of a peer's health.

use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::peer::Peer;

/// A peer as this process sees it: see [`HttpPool::peers`](crate::http::HttpPool::peers).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer, as it was set.
    pub peer: Peer,
    /// Whether the peer is asked.
    pub state: PeerState,
    /// The reason for a state other than [`PeerState::Healthy`], for people; or that the peer is healthy and
    /// has another list of peers.
    pub cause: Option<String>,
    /// Half of the recent answers took at most this time, from the request to the last byte, without the
    /// loads at the peer that it reports ([`load_time`](crate::PeerResponse::load_time)). An exchange that
    /// reached its own time-out counts as one that took that long. Of a peer that answers more than 128 times
    /// in half a second, a sample of the answers is timed, at least 64 in that time. `None` if there were
    /// fewer than three in the last seconds.
    pub p50: Option<Duration>,
    /// The same for 99 of 100 answers.
    pub p99: Option<Duration>,
    /// The requests to the peer that are under way, those that wait for a connection included.
    pub in_flight: usize,
    /// The last exchange that brought no answer, probes included.
    pub last_error: Option<PeerFailure>,
}

/// Whether a peer is asked for its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeerState {
    /// It is asked for its keys.
    Healthy,
    /// It answers much later than the others: see [`HttpPool::peers`](crate::http::HttpPool::peers). The
    /// next peer is asked in its place, unless more than a third of the nodes are slow.
    Slow,
    /// It does not answer. The next peer is asked, and keeps the values for 10 s. The peer is probed in
    /// the background.
    Down,
    /// It has been down for [`absent_after`](crate::http::HttpPoolBuilder::absent_after), or it announced
    /// that it [leaves](crate::http::HttpPool::leave). Its keys belong to the next peer until it answers a
    /// probe.
    Absent,
}

/// An exchange that brought no answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerFailure {
    /// The error of the exchange.
    pub error: Error,
    /// When, by the wall clock.
    pub at: SystemTime,
}
