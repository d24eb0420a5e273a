//! The response to a request for several keys, while the values are collected.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::http::server::endpoint::fields::fields_of;
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

    fn is_known(&self, at: usize, value: &[u8]) -> bool {
        let is_equal = |known| known == wire::value_hash(self.key_hash(at), value);
        self.known[at].is_some_and(is_equal)
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
