//! Several keys that one caller asks a peer for.

use std::time::Instant;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::Result;
use crate::http::client::peer::HttpPeer;
use crate::http::client::peer::batch_values::{BatchError, BatchOf};
use crate::peers::PeerResponse;

impl HttpPeer {
    /// Asks for several keys, in as few batches as the limits allow. `olds` has the values that the peer
    /// need not send again, or is empty.
    ///
    /// If a batch fails after another one brought values, or if the peer does not support batches, the
    /// remaining keys are `None`.
    pub(super) fn ask_for_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
        olds: &[Option<ByteView>],
        of: BatchOf,
    ) -> Result<Vec<Option<Result<PeerResponse>>>> {
        let mut found = Vec::with_capacity(keys.len());
        while found.len() < keys.len() && self.policy.is_enabled() {
            let deadline = self.deadline(ctx, Instant::now())?;
            let rest = &keys[found.len()..];
            let batch = &rest[..self.batch_len(rest)];
            let olds = olds.get(found.len()..).unwrap_or_default();
            let olds = &olds[..batch.len().min(olds.len())];
            match self.send_batch(ctx, group, batch, olds, deadline, of) {
                Ok(values) => {
                    found.extend((0..batch.len()).map(|place| values.answer(place)));
                }
                Err(BatchError::Peer(error) | BatchError::Failed { error, .. })
                    if found.is_empty() =>
                {
                    return Err(error);
                }
                Err(_) => break,
            }
        }
        found.resize(keys.len(), None);
        Ok(found)
    }

    /// How many of `keys` fit in one batch, at least one.
    fn batch_len(&self, keys: &[&str]) -> usize {
        let mut bytes = 0;
        let fits = |key: &&&str| {
            bytes += key.len();
            bytes <= self.config.max_batch_key_bytes()
        };
        let count = keys.iter().take_while(fits).count();
        count.clamp(1, self.config.max_batch_keys)
    }
}
