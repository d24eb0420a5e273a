//! The response to a request for several keys, while the values are collected.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::http::server::endpoint::reply::fields_of;
use crate::pb::GetManyRequest;
use crate::peers::PeerResponse;
use crate::wire::{self, Body, ManyBody};

pub(super) struct ManyReply<'r> {
    group: &'r str,
    keys: &'r [Cow<'r, str>],
    /// The hash of the value of each key that the client has.
    known: Vec<Option<u64>>,
    /// The answer for each key; `None` if the client has to ask for it by itself.
    found: Vec<Option<Found>>,
    /// The bytes of values for which there is room.
    room: usize,
    /// The bytes of values that may still be compared with those of the client.
    comparable: usize,
}

enum Found {
    Value(PeerResponse),
    /// The value that the client has.
    Unchanged(PeerResponse),
    Error(Error),
}

impl<'r> ManyReply<'r> {
    pub(super) fn new(group: &'r str, request: &'r GetManyRequest<'r>, room: usize) -> Self {
        ManyReply {
            group,
            keys: &request.keys,
            known: wire::known_hashes(request).collect(),
            found: request.keys.iter().map(|_| None).collect(),
            room,
            comparable: MAX_COMPARED,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.room > 0
    }

    /// Adds the answer for the key at this index, if there is room for it. The client fetches a value that
    /// does not fit with a request of its own, like a missing one.
    pub(super) fn add(&mut self, at: usize, answer: Result<PeerResponse>) {
        let (found, len) = match answer {
            Err(error) => (Found::Error(error), wire::MAX_ERROR_TEXT),
            Ok(found) if self.is_known(at, &found.value) => (Found::Unchanged(found), 0),
            Ok(found) => {
                let len = found.value.len();
                (Found::Value(found), len)
            }
        };
        if let Some(left) = self.room.checked_sub(len) {
            self.room = left;
            self.found[at] = Some(found);
        }
    }

    /// Whether the client has this value, as far as may still be compared.
    fn is_known(&mut self, at: usize, value: &[u8]) -> bool {
        let left = self.comparable.checked_sub(value.len());
        let (Some(known), Some(left)) = (self.known[at], left) else {
            return false;
        };
        self.comparable = left;
        known == wire::value_hash(self.key_hash(at), value)
    }

    fn key_hash(&self, at: usize) -> u64 {
        wire::key_hash(self.group, &self.keys[at])
    }

    pub(super) fn finish(mut self) -> Body {
        let mut body = ManyBody::default();
        for at in 0..self.keys.len() {
            let hash = self.key_hash(at);
            match self.found[at].take() {
                None => body.push_missing(),
                Some(Found::Error(error)) => body.push_error(&error),
                Some(Found::Unchanged(found)) => body.push_unchanged(hash, &fields_of(&found)),
                Some(Found::Value(found)) => {
                    let fields = fields_of(&found);
                    body.push(hash, found.value, &fields);
                }
            }
        }
        body.finish()
    }
}

/// The most bytes of values whose hashes are computed for one request. A client that names one long value many
/// times would occupy a processor for seconds otherwise.
const MAX_COMPARED: usize = 64 << 20;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;

    #[test]
    fn long_values_that_a_client_names_many_times_are_not_all_compared() {
        let (count, len) = (100, 1 << 20);
        let (value, hash) = (vec![7; len], wire::key_hash("group", "key"));
        let known = wire::value_hash(hash, &value).to_le_bytes();
        let request = GetManyRequest {
            keys: vec!["key".into(); count],
            known: Some(known.repeat(count).into()),
            ..GetManyRequest::default()
        };
        let mut reply = ManyReply::new("group", &request, len / 2);
        for at in 0..count {
            reply.add(at, Ok(PeerResponse::new(value.clone())));
        }
        let is_known = |found: &Option<Found>| matches!(found, Some(Found::Unchanged(_)));
        let compared = reply.found.iter().filter(|found| is_known(found)).count();
        assert_eq!(compared, MAX_COMPARED / len);
        // The client asks for the others one by one.
        assert!(reply.found[compared..].iter().all(Option::is_none));
    }
}
