//! Serves the requests of peers for several keys.

use std::cell::Cell;

use super::key::{ManyFrom, ManyKey};
use crate::context::Context;
use crate::error::{ErrorKind, Result};
use crate::group::load::client_load::ClientWaiter;
use crate::group::{Group, Inner, LoadKey, Loaded};
use crate::peers::PeerResponse;
use crate::store::Hit;
use crate::sync::Arc;

impl Group {
    /// The values of `keys` for a peer, in their order, as by [`serve_peer`](Self::serve_peer). A
    /// [bulk getter](crate::BulkGetter) runs once for all that are not cached; another getter runs for several
    /// keys at the same time.
    ///
    /// A transport of your own calls this for [`ProtoGetter::load_many`](crate::ProtoGetter::load_many).
    ///
    /// # Panics
    ///
    /// As for [`get_with`](Self::get_with).
    pub fn serve_peer_many(&self, ctx: &Context, keys: &[&str]) -> Vec<Result<PeerResponse>> {
        let mut results = vec![Err(ErrorKind::DeadlineExceeded.into()); keys.len()];
        let keys: Vec<(usize, &str)> = keys.iter().copied().enumerate().collect();
        let each = &mut |at: usize, result| results[at] = result;
        self.inner.get_many_for_peer(ctx, &keys, None, each);
        results
    }

    /// Like [`serve_peer_many`](Self::serve_peer_many), but the getter always runs on loader threads, and
    /// `waiter` decides how long this thread waits. Passes the results to `each`, with the number that
    /// stands beside each key. Keys that are not loaded in time get
    /// [`ErrorKind::DeadlineExceeded`].
    #[cfg(feature = "http")]
    pub(crate) fn serve_client_many(
        &self,
        ctx: &Context,
        keys: &[(usize, &str)],
        waiter: &mut dyn ClientWaiter,
        each: &mut dyn FnMut(usize, Result<PeerResponse>),
    ) {
        self.inner.get_many_for_peer(ctx, keys, Some(waiter), each);
    }
}

impl Inner {
    /// The values of `keys` for a peer: from the store or the getter, never from another peer. Passes
    /// each result to `each`, in no particular order.
    fn get_many_for_peer(
        self: &Arc<Self>,
        ctx: &Context,
        keys: &[(usize, &str)],
        waiter: Option<&mut dyn ClientWaiter>,
        each: &mut dyn FnMut(usize, Result<PeerResponse>),
    ) {
        let arrived = self.store.clock().now();
        // Read before all look-ups, in the order of the keys. So the first mark is the oldest.
        let removals: Vec<_> = keys.iter().map(|(_, key)| self.removals_for(key)).collect();
        // Measured as the keys are counted.
        let rates: Vec<Cell<Option<f64>>> = vec![Cell::new(None); keys.len()];
        let mut each = |at: usize, result: Result<Loaded>| {
            let response = |loaded| PeerResponse {
                removals: removals[at],
                minute_qps: rates[at].get(),
                ..self.peer_response(loaded, arrived)
            };
            each(keys[at].0, result.map(response));
        };
        let mut missing = Vec::new();
        for (at, &(_, key)) in keys.iter().enumerate() {
            let key = self.key(key);
            let purge = || self.purge_for_peer();
            let is_left_out = Cell::new(false);
            let may_serve = |hit: &Hit| {
                is_left_out.set(waiter.is_some() && self.is_stale(hit));
                !is_left_out.get()
            };
            let store = &self.store;
            let found = store
                .get_if(key.hash, key.key, may_serve, || (), purge)
                .ok();
            if is_left_out.get() {
                // The client waits for other keys, and asks for this one by itself.
                continue;
            }
            self.counters.add(|loads| &loads.server_requests);
            rates[at].set(match &found {
                Some(_) => self.count_request(&key),
                None => self.count_miss(&key, purge),
            });
            if let Some(hit) = found.filter(|hit| !self.is_doubtful_copy(&key, hit)) {
                each(at, self.serve_hit(ctx, &key, hit, waiter.is_some()));
                continue;
            }
            let checked = self.check_key(key.key);
            match checked.and_then(|()| self.check_failed_loads(&key)) {
                Ok(()) => {
                    let from = ManyFrom::Getter(self.placement_for_peer(&key));
                    missing.push(ManyKey { at, key, from });
                }
                Err(error) => each(at, Err(error)),
            }
        }
        if !missing.is_empty() {
            self.load_several(ctx, missing, waiter, &mut each);
        }
    }

    /// The value of a hit. For a client it is not stale.
    fn serve_hit(
        self: &Arc<Self>,
        ctx: &Context,
        key: &LoadKey<'_>,
        hit: Hit,
        for_client: bool,
    ) -> Result<Loaded> {
        if hit.is_due && !for_client {
            return self.serve_due(ctx, key, hit, None);
        }
        self.refresh_if_due(key, &hit);
        Ok(self.loaded(hit))
    }
}
