//! Sends a change to several peers at the same time, and notes which of them confirmed it.

use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};

use super::Inner;
use super::flight::Executor;
use crate::context::Context;
use crate::error::{Error, ErrorKind, FailedPeer, Partial, Result};
use crate::loader_pool::JobFor;
use crate::panics::caught;
use crate::peers::ProtoGetter;
use crate::sync::Arc;

/// The peers that did not confirm a change.
pub(super) struct Told {
    pub(super) failed: Vec<FailedPeer>,
    /// The number of peers that were told.
    all: usize,
}

/// How a request to the peer of this place in the list ended. `None` if the caller's context ended.
type End = Option<(usize, Result<()>)>;

impl Inner {
    /// The result of a change that was applied here and at `owners` other nodes before these peers were
    /// told.
    pub(super) fn result_of(&self, told: Told, owners: usize) -> Result<()> {
        if told.failed.is_empty() {
            return Ok(());
        }
        let nodes = 1 + owners + told.all;
        let confirmed = nodes - told.failed.len();
        let limit = self
            .max_unverified
            .limit()
            .filter(|_| 2 * confirmed > nodes);
        let stale_until = limit.and_then(|limit| Instant::now().checked_add(limit));
        Err(Partial::new(told.failed, stale_until).into())
    }

    /// Calls `send` for each peer: for the first on this thread, for the others on loader threads at
    /// the same time. A peer for which no loader thread is free comes after the first. Returns by the
    /// deadline of `ctx`.
    pub(super) fn tell(
        self: &Arc<Self>,
        ctx: &Context,
        peers: Vec<Arc<dyn ProtoGetter>>,
        send: impl Fn(&Arc<dyn ProtoGetter>, &Context) -> Result<()> + Send + Sync + 'static,
    ) -> Told {
        let (sender, ends) = unbounded();
        let (send, mut here) = (Arc::new(without_panics(send)), Vec::new());
        let mut results: Vec<Option<Result<()>>> = peers.iter().map(|_| None).collect();
        for (at, peer) in peers.iter().enumerate() {
            let can_block = Executor::for_peer(ctx, &**peer) == Executor::LoaderPool;
            if here.is_empty() && !can_block {
                here.push(at);
                continue;
            }
            let submitted = {
                let (peer, ctx) = (peer.clone(), ctx.clone());
                let (send, sender) = (send.clone(), sender.clone());
                self.pool.submit(JobFor::Own, move |busy| {
                    let result = send(&peer, &ctx);
                    drop(busy);
                    // Fails if the caller has returned already.
                    let _ = sender.send(Some((at, result)));
                    (peer, ctx, send)
                })
            };
            match submitted {
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
            results[at] = Some(send(&peers[at], ctx));
        }
        while results.iter().any(Option::is_none) {
            let Some((at, result)) = next_by(ctx, &ends) else {
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
        Told {
            failed: failed.collect(),
            all: peers.len(),
        }
    }
}

/// The next end; `None` once the context has ended, or no thread is left that could send one.
fn next_by(ctx: &Context, ends: &Receiver<End>) -> End {
    match ctx.deadline() {
        None => ends.recv().ok().flatten(),
        Some(deadline) => ends.recv_deadline(deadline).ok().flatten(),
    }
}

/// `send`, whose panic is an error.
fn without_panics(
    send: impl Fn(&Arc<dyn ProtoGetter>, &Context) -> Result<()>,
) -> impl Fn(&Arc<dyn ProtoGetter>, &Context) -> Result<()> {
    move |peer, ctx| caught(|| send(peer, ctx)).unwrap_or_else(|| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Peer, "the request to the peer panicked")
}
