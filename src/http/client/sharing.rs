//! What a peer's client keeps for shared exchanges, and what comes of one.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::error::{Error, Result};
use crate::http::client::body::Bytes;
use crate::http::config::SharedLimits;
use crate::peers::PeerResponse;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::wire::ManyValue;

/// What a peer's client keeps for shared exchanges.
pub(crate) struct Sharing {
    pub(crate) limits: SharedLimits,
    /// Set for good when the peer does not know such requests.
    pub(crate) unknown: AtomicBool,
    /// The mean length of the values that the peer sent lately. Races lose some of them.
    mean_len: AtomicUsize,
}

/// What came of a shared exchange, for each who rode in it.
pub(crate) type Outcome = Result<Answers, Failure>;

/// Why a shared exchange brought no values.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The exchange failed, or the peer does not know such requests: the keys are asked for singly.
    AskSingly,
    /// The peer's word on all of the keys.
    Said(Error),
}

/// The answer to a shared exchange.
pub(crate) struct Answers {
    pub(crate) body: Bytes,
    pub(crate) slots: Vec<Option<ManyValue>>,
}

impl Answers {
    /// The value at `place`, whose key is `key`. A copy: a view would keep all the others in
    /// memory. It is made of one allocation with its key, as the store keeps it.
    pub(crate) fn get(&self, place: usize, key: &str) -> Option<PeerResponse> {
        let slot = self.slots.get(place)?.as_ref()?;
        let value = ByteView::keyed(key, self.body.get(slot.range.clone())?);
        let response = PeerResponse::new(value);
        Some(match slot.ttl_nanos {
            Some(nanos) => response.with_ttl(Duration::from_nanos(nanos)),
            None => response,
        })
    }
}

impl Sharing {
    pub(crate) fn new(limits: SharedLimits) -> Self {
        Sharing {
            limits,
            unknown: AtomicBool::new(false),
            mean_len: AtomicUsize::new(0),
        }
    }

    /// Whether the peer may be asked for several keys at once.
    pub(crate) fn is_known(&self) -> bool {
        self.limits.max_keys > 1 && !self.unknown.load(Ordering::Relaxed)
    }

    /// Whether it pays to wait for others: long values take longer to send than to ask for.
    pub(crate) fn pays(&self) -> bool {
        self.is_known() && self.mean_len.load(Ordering::Relaxed) <= LONG_VALUES
    }

    /// Notes the length of a value, or the mean of several.
    pub(crate) fn note_len(&self, len: usize) {
        let mean = self.mean_len.load(Ordering::Relaxed);
        let moved = mean - mean / MEAN_OF + len / MEAN_OF;
        // A shared line is written only where it changes anything.
        if moved != mean {
            self.mean_len.store(moved, Ordering::Relaxed);
        }
    }
}

/// Where the mean of the values is above this many bytes, threads do not ride together.
const LONG_VALUES: usize = 16 << 10;

/// About how many of the last values the mean is of.
const MEAN_OF: usize = 16;
