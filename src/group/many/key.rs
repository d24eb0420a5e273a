//! The keys of a call for several keys.

use crate::byteview::ByteView;
use crate::error::Result;
use crate::group::load::populate::Placement;
use crate::group::{LoadKey, Loaded};
use crate::store::KeyHash;

/// A key of a call for several keys.
#[derive(Clone, Copy)]
pub(in crate::group) struct ManyKey<'k> {
    /// The index of the key in the caller's list.
    pub(in crate::group) at: usize,
    pub(in crate::group) key: LoadKey<'k>,
    pub(in crate::group) from: ManyFrom,
}

/// The source of a key's value.
#[derive(Clone, Copy)]
pub(in crate::group) enum ManyFrom {
    /// The getter of this process.
    Getter(Placement),
    /// The owner, if it is another process, and then as for a single get.
    Peers,
}

/// A result for each key, in their order; `None` while there is none.
pub(super) type Results = Vec<Option<Result<ByteView>>>;

/// Takes the result of the key at an index of the caller's list.
pub(super) type Each<'e> = dyn FnMut(usize, Result<Loaded>) + 'e;

impl ManyKey<'_> {
    /// Where the value belongs, if it is loaded here.
    pub(in crate::group) fn placement(&self) -> Placement {
        match self.from {
            ManyFrom::Getter(placement) => placement,
            ManyFrom::Peers => Placement::Fallback,
        }
    }
}

/// A [`ManyKey`] that a loader thread can hold.
pub(super) struct OwnedKey {
    at: usize,
    hash: KeyHash,
    key: Box<str>,
    from: ManyFrom,
}

impl From<&ManyKey<'_>> for OwnedKey {
    fn from(key: &ManyKey<'_>) -> Self {
        OwnedKey {
            at: key.at,
            hash: key.key.hash,
            key: key.key.key.into(),
            from: key.from,
        }
    }
}

impl OwnedKey {
    pub(super) fn borrow(&self) -> ManyKey<'_> {
        let key = LoadKey {
            hash: self.hash,
            key: &self.key,
        };
        ManyKey {
            at: self.at,
            key,
            from: self.from,
        }
    }
}
