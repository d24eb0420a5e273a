//! How a group finds and asks its peers: traits, and the answer for a process without any.

use std::fmt;
use std::time::Duration;

use crate::byteview::ByteView;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::pb::GetRequest;
use crate::sync::{Arc, OnceLock};

/// Finds the peer that owns a key.
pub trait PeerPicker: Send + Sync {
    /// The owner of `key`, or `None` if that is this process.
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn ProtoGetter>>;

    /// Whom to ask when `attempt` peers, the owner first, have failed for `key`; `None` to load
    /// it here. Attempt 0 is [`pick_peer`](Self::pick_peer).
    ///
    /// By default there is nobody else to ask.
    fn pick_replica(&self, key: &str, attempt: usize) -> Option<Arc<dyn ProtoGetter>> {
        if attempt == 0 {
            self.pick_peer(key)
        } else {
            None
        }
    }
}

/// A peer that can be asked for a key.
pub trait ProtoGetter: Send + Sync {
    /// Asks the peer, which answers from its cache or its getter and never asks on.
    ///
    /// # Errors
    ///
    /// What the peer's getter said, by its kind ([`ErrorKind::NotFound`], [`ErrorKind::Getter`],
    /// [`ErrorKind::GetterPanicked`]…): that is an answer, and the caller gets it as it is.
    /// [`ErrorKind::Peer`] and [`ErrorKind::UnknownGroup`] mean that there was no answer: the next
    /// peer is asked, then the getter here. [`ErrorKind::DeadlineExceeded`] only where `ctx`'s own
    /// deadline has passed; a time-out of the exchange is [`ErrorKind::Peer`].
    fn get(&self, ctx: &Context, request: &GetRequest<'_>) -> Result<PeerResponse>;

    /// Asks the peer for what it has cached of `keys`, in as few exchanges as it can: an answer for
    /// each, in their order, `None` where the key has to be asked for with [`get`](Self::get).
    ///
    /// The peer loads nothing, so no key waits for another. By default nothing is asked, and all
    /// answers are `None`.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), if it concerns all of the keys. An answer with another number of keys
    /// is taken for all `None`.
    fn get_many(
        &self,
        ctx: &Context,
        group: &str,
        keys: &[&str],
    ) -> Result<Vec<Option<PeerResponse>>> {
        let _ = (ctx, group);
        Ok(vec![None; keys.len()])
    }

    /// Whether [`get`](Self::get) and [`get_many`](Self::get_many) return by `ctx`'s deadline
    /// whatever happens.
    ///
    /// If not (the default), calls with a deadline run on a loader thread, so that callers can
    /// leave in time.
    fn honors_deadline(&self) -> bool {
        false
    }
}

/// What a peer answered.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PeerResponse {
    /// The value.
    pub value: ByteView,
    /// How long it is good for, from now; `None`: until it is evicted.
    pub ttl: Option<Duration>,
    /// How often the key is asked for at its owner, per minute, if the owner says.
    pub minute_qps: Option<f64>,
}

impl PeerResponse {
    /// A value that does not expire.
    pub fn new(value: impl Into<ByteView>) -> Self {
        PeerResponse {
            value: value.into(),
            ttl: None,
            minute_qps: None,
        }
    }

    /// The same with a time to live.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

/// The picker of a process without peers: every key is its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl PeerPicker for NoPeers {
    fn pick_peer(&self, _key: &str) -> Option<Arc<dyn ProtoGetter>> {
        None
    }
}

/// Receives the list of peers whenever it changes.
pub trait PeerSet: Send + Sync {
    /// Replaces the peers by `urls`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPeer`] or [`ErrorKind::DuplicatePeer`]; the peers stay as they were.
    fn set_peers(&self, urls: &[String]) -> Result<()>;
}

/// The picker of all groups, or how to find that of a group by its name.
pub(crate) enum Pickers {
    One(Arc<dyn PeerPicker>),
    ByGroup(Box<PickerOf>),
}

type PickerOf = dyn Fn(&str) -> Arc<dyn PeerPicker> + Send + Sync;

/// Where a registry's peer picker is put, and where its groups look for it.
#[derive(Clone, Default)]
pub(crate) struct PickerSlot {
    pickers: Arc<OnceLock<Pickers>>,
}

impl PickerSlot {
    /// Puts the picker in, once.
    pub(crate) fn register(&self, pickers: Pickers) -> Result<()> {
        self.pickers.set(pickers).map_err(|_| {
            Error::new(
                ErrorKind::AlreadyRegistered,
                "this registry has a peer picker; make a Registry of its own for another pool",
            )
        })
    }

    /// Asks the picker of a group; `None` while none is registered.
    ///
    /// It is lent, not handed out: threads would meet at its reference count with every load.
    #[inline]
    pub(crate) fn ask<R>(&self, group: &str, ask: impl FnOnce(&dyn PeerPicker) -> R) -> Option<R> {
        Some(match self.pickers.get()? {
            Pickers::One(picker) => ask(&**picker),
            Pickers::ByGroup(picker_of) => ask(&*picker_of(group)),
        })
    }

    /// The owner of `key`; `None` if that is this process, or while no picker is registered.
    #[inline]
    pub(crate) fn owner(&self, group: &str, key: &str) -> Option<Arc<dyn ProtoGetter>> {
        self.ask(group, |picker| picker.pick_peer(key)).flatten()
    }
}

impl fmt::Debug for PickerSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PickerSlot").finish_non_exhaustive()
    }
}
