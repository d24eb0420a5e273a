//! Whom a load asks: the getter here, or peers in turn.

use std::time::Duration;

use super::Loader;
use super::counters::GetterRun;
use super::flight::{Route, RunOn};
use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::getter::LoadSink;
use crate::pb::GetRequest;
use crate::peers::{PeerPicker, PeerResponse};

/// Peers asked for one key before the getter runs here: the owner and its successor on the ring.
const MAX_PEERS_ASKED: usize = 2;

impl Loader {
    #[inline]
    pub(super) fn run_getter<'s>(
        &self,
        ctx: &Context,
        key: &str,
        sink: &'s mut LoadSink<'_>,
    ) -> Result<(&'s mut ByteView, Option<Duration>)> {
        let mut run = GetterRun::new(&self.counters);
        self.getter
            .get(ctx, key, sink)
            .map_err(Error::from_getter)?;
        let loaded = sink.loaded()?;
        run.has_loaded = true;
        Ok(loaded)
    }

    /// Asks the owner, and if it does not answer, its successor. `None` if nobody answered.
    pub(super) fn ask_peers(
        &self,
        route: &Route,
        ctx: &Context,
        key: &str,
    ) -> Option<Result<PeerResponse>> {
        let request = GetRequest {
            group: self.name.as_str().into(),
            key: key.into(),
        };
        let mut replica = None;
        for attempt in 1..=MAX_PEERS_ASKED {
            let peer = match attempt {
                1 => &route.owner,
                _ => replica.as_ref()?,
            };
            let answer = peer.get(ctx, &request);
            let error = match answer {
                Ok(response) => {
                    self.counters.add(|loads| &loads.peer_loads);
                    return Some(Ok(response));
                }
                Err(error) => error,
            };
            match error.kind() {
                kind if is_no_answer(kind) && ctx.err().is_none() || kind == ErrorKind::Peer => {
                    self.counters.add(|loads| &loads.peer_errors);
                    log::debug!("group {}: {error}", self.name);
                }
                // The peer is well and does not know the group: it was not told of it yet, or the
                // processes run different code. Its successor is no better placed than we are.
                ErrorKind::UnknownGroup => {
                    self.counters.add(|loads| &loads.peer_errors);
                    return None;
                }
                // The peer's getter has spoken.
                _ => return Some(Err(error)),
            }
            if let Some(ended) = ctx.err() {
                return Some(Err(ended));
            }
            if attempt == MAX_PEERS_ASKED {
                break;
            }
            let pick = |picker: &dyn PeerPicker| picker.pick_replica(key, attempt);
            replica = self.peers.ask(&self.name, pick).flatten();
            // One that could make the caller late is passed over: the owner was thought punctual,
            // so this is the caller's thread.
            if route.run_on == RunOn::Caller {
                replica = replica.filter(|peer| RunOn::for_peer(ctx, &**peer) == RunOn::Caller);
            }
        }
        None
    }
}

/// Whether a peer's error says nothing of the key, only that the peer had no time or no means; as
/// it would over HTTP, where such errors arrive as [`ErrorKind::Peer`].
fn is_no_answer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Peer
            | ErrorKind::DeadlineExceeded
            | ErrorKind::Cancelled
            | ErrorKind::Overloaded
            | ErrorKind::Io
    )
}
