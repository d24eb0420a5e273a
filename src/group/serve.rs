//! Serves the requests of peers: from the store or the getter, never from another peer.

use super::lifetime::Lifetime;
use super::load::client_load::ClientWaiter;
use super::{Group, Inner, Loaded};
use crate::clock::Tick;
use crate::context::Context;
use crate::error::Result;
use crate::peers::PeerResponse;
use crate::store::Hit;
use crate::sync::Arc;

impl Group {
    /// The value of `key` for a peer: from the store or the getter. Before the getter runs, another owner of
    /// the key may be asked for what it has cached, for 10 ms at most. No other peer loads.
    ///
    /// [`HttpPool`](crate::http::HttpPool) calls this for incoming requests. A transport of your own
    /// must call it, too.
    ///
    /// # Errors
    ///
    /// As for [`get_with`](Self::get_with).
    ///
    /// # Panics
    ///
    /// As for [`get_with`](Self::get_with).
    pub fn serve_peer(&self, ctx: &Context, key: &str) -> Result<PeerResponse> {
        self.inner.get_for_peer(ctx, key, None)
    }

    /// Like [`serve_peer`](Self::serve_peer), but the getter always runs on a loader thread, and
    /// `waiter` decides how long this thread waits.
    #[cfg(feature = "http")]
    pub(crate) fn serve_client(
        &self,
        ctx: &Context,
        key: &str,
        waiter: &mut dyn ClientWaiter,
    ) -> Result<PeerResponse> {
        self.inner.get_for_peer(ctx, key, Some(waiter))
    }

    /// The value of `key` for a peer, if it is cached here. Loads nothing. Counts as a request and a
    /// look-up only if there is a value. Without one the peer sends another request, which
    /// [`serve_peer`](Self::serve_peer) answers and counts.
    #[inline]
    pub fn serve_peer_cached(&self, key: &str) -> Option<PeerResponse> {
        let inner = &self.inner;
        let key = inner.key(key);
        let removals = inner.removals_for(key.key);
        let may_serve = |hit: &Hit| !inner.is_doubtful_copy(&key, hit) && !inner.is_stale(hit);
        let purge = || inner.purge_for_peer();
        let found = inner
            .store
            .get_if(key.hash, key.key, may_serve, || (), purge);
        let hit = found.ok()?;
        inner.refresh_if_due(&key, &hit);
        // The peer may be the owner, which was away. It keeps the value for its full life.
        let full = inner.full_lifetime(&hit);
        let mut loaded = inner.loaded(hit);
        loaded.lifetime = full.unwrap_or(loaded.lifetime);
        inner.counters.add(|loads| &loads.server_requests);
        let now = inner.store.clock().now();
        Some(PeerResponse {
            removals,
            minute_qps: inner.count_request(&key),
            ..inner.peer_response(loaded, now)
        })
    }
}

impl Inner {
    pub(super) fn get_for_peer(
        self: &Arc<Self>,
        ctx: &Context,
        key: &str,
        waiter: Option<&mut dyn ClientWaiter>,
    ) -> Result<PeerResponse> {
        self.counters.add(|loads| &loads.server_requests);
        let arrived = self.store.clock().now();
        let removals = self.removals_for(key);
        let key = self.key(key);
        let epochs = || self.epochs(key.hash);
        let found = self
            .store
            .get(key.hash, key.key, epochs, || self.purge_for_peer());
        let minute_qps = match &found {
            Ok(_) => self.count_request(&key),
            Err(_) => self.count_miss(&key, || self.purge_for_peer()),
        };
        let value = match found {
            Ok(hit) if self.is_doubtful_copy(&key, &hit) => {
                self.load_for_peer(ctx, &key, None, waiter)?
            }
            Ok(hit) if !hit.is_due => {
                return Ok(PeerResponse {
                    removals,
                    minute_qps,
                    ..self.peer_response(self.loaded(hit), arrived)
                });
            }
            Ok(hit) => self.serve_due(ctx, &key, hit, waiter)?,
            Err(miss) => self.load_for_peer(ctx, &key, Some(&miss), waiter)?,
        };
        Ok(PeerResponse {
            removals,
            minute_qps,
            load_time: self.store.clock().now().since(arrived),
            ..self.peer_response(value, arrived)
        })
    }

    /// The times that a cached value has at the owner of its key, if they are [shortened](Hit::is_shortened)
    /// here.
    fn full_lifetime(&self, hit: &Hit) -> Option<Lifetime> {
        let begun = hit.begun.tick().filter(|_| hit.is_shortened)?;
        let (ttl, allowance) = (self.freshness.time_to_live, self.freshness.allowance());
        Some(Lifetime::of_load(begun, ttl, allowance))
    }

    /// The response with a value to a request that arrived at this time.
    #[inline]
    pub(super) fn peer_response(&self, value: Loaded, arrived: Tick) -> PeerResponse {
        let Lifetime {
            begun,
            fresh_until,
            expires,
        } = value.lifetime;
        // The wait for a loader thread, between the arrival and the start of the load, is no part of the
        // time to live.
        let from = begun.map_or(arrived, |begun| begun.max(arrived));
        PeerResponse {
            ttl: fresh_until.map(|end| end.since(from)),
            stale: expires.zip(fresh_until).and_then(|(end, fresh)| {
                let left = end.since(fresh.max(from));
                (end > fresh).then_some(left)
            }),
            age: begun.map(|begun| arrived.since(begun)),
            ..PeerResponse::new(value.view)
        }
    }
}
