//! Sends a change to several peers at the same time, and records which of them confirmed it.

use std::time::Instant;

use crossbeam_channel::unbounded;

use crate::context::Context;
use crate::error::{Error, ErrorKind, FailedPeer, Partial, Result};
use crate::group::Inner;
use crate::group::load::flight::Executor;
use crate::group::many::parallel::next_by;
use crate::panics::caught;
use crate::peers::ProtoGetter;
use crate::sync::Arc;

/// The result of a broadcast.
pub(in crate::group) struct Confirmations {
    /// The peers that did not confirm the change.
    pub(in crate::group) failed: Vec<FailedPeer>,
    /// The number of all peers.
    peers: usize,
}

/// Sends a change to one peer.
type SendFn = dyn Fn(&Arc<dyn ProtoGetter>, &Context) -> Result<()> + Send + Sync;

impl Inner {
    /// The result of a change that this node and `owners` other nodes applied before the broadcast.
    pub(super) fn confirmed(&self, by: Confirmations, owners: usize) -> Result<()> {
        if by.failed.is_empty() {
            return Ok(());
        }
        let nodes = 1 + owners + by.peers;
        let confirmed = nodes - by.failed.len();
        let limit = self
            .max_unverified
            .limit()
            .filter(|_| 2 * confirmed > nodes);
        let stale_until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Err(Partial::new(by.failed, stale_until).into())
    }

    /// Calls `send` for each peer: for the first on this thread, for the others on loader threads at
    /// the same time. A peer for which no loader thread is free comes after the first. Returns by the
    /// deadline of `ctx`.
    pub(super) fn broadcast(
        self: &Arc<Self>,
        ctx: &Context,
        peers: &[Arc<dyn ProtoGetter>],
        send: Arc<SendFn>,
    ) -> Confirmations {
        let (sender, ends) = unbounded();
        let mut here = Vec::new();
        let mut results: Vec<Option<Result<()>>> = peers.iter().map(|_| None).collect();
        for (at, peer) in peers.iter().enumerate() {
            let can_block = Executor::for_peer(ctx, &**peer) == Executor::LoaderPool;
            if here.is_empty() && !can_block {
                here.push(at);
                continue;
            }
            let ask = {
                let (peer, ctx, send) = (peer.clone(), ctx.clone(), send.clone());
                move || Some((at, send_caught(&*send, &peer, &ctx)))
            };
            match self.ask_on_pool(&sender, ask) {
                Ok(()) => {}
                Err(refused) if can_block => results[at] = Some(Err(refused)),
                Err(_) => here.push(at),
            }
        }
        let _subscription = ctx.cancellable().then(|| {
            let sender = sender.clone();
            // Fails if the caller has returned already.
            ctx.on_cancel(move || drop(sender.send(None)))
        });
        drop(sender);
        for at in here {
            results[at] = Some(send_caught(&*send, &peers[at], ctx));
        }
        while results.iter().any(Option::is_none) {
            // `None` also if a cancellation woke this thread.
            let Some((at, result)) = next_by(ctx, &ends).flatten() else {
                break;
            };
            results[at] = Some(result);
        }
        let failed = peers.iter().zip(results).filter_map(|(peer, result)| {
            let error = result
                .unwrap_or_else(|| Err(ctx.err().unwrap_or_else(panicked)))
                .err()?;
            self.note_failure(&error);
            Some(FailedPeer::new(peer.url(), error))
        });
        Confirmations {
            failed: failed.collect(),
            peers: peers.len(),
        }
    }
}

fn send_caught(send: &SendFn, peer: &Arc<dyn ProtoGetter>, ctx: &Context) -> Result<()> {
    caught(|| send(peer, ctx)).unwrap_or_else(|| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Peer, "the request to the peer panicked")
}
