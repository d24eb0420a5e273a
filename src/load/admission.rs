//! Which copies of other processes' values are worth keeping.

use std::fmt;

use crate::byteview::ByteView;
use crate::sync::Arc;

/// Which copies of other processes' values are kept in the hot share.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum HotAdmission {
    /// All of them; eviction sorts out which were worth it.
    #[default]
    Always,
    /// None: every get of another's key goes to its owner.
    Never,
    /// Each with this probability, 0 to 1. golang/groupcache keeps one in ten.
    Probability(f64),
    /// Those that the function says, of key and value.
    Custom(Arc<AdmissionFn>),
}

/// Says of a key and its value whether to keep a copy.
pub type AdmissionFn = dyn Fn(&str, &ByteView) -> bool + Send + Sync;

impl HotAdmission {
    pub(super) fn admits(&self, key: &str, value: &ByteView) -> bool {
        match self {
            HotAdmission::Always => true,
            HotAdmission::Never => false,
            HotAdmission::Probability(p) => crate::random::unit() < *p,
            HotAdmission::Custom(admit) => admit(key, value),
        }
    }
}

impl fmt::Debug for HotAdmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HotAdmission::Always => f.write_str("Always"),
            HotAdmission::Never => f.write_str("Never"),
            HotAdmission::Probability(p) => f.debug_tuple("Probability").field(p).finish(),
            HotAdmission::Custom(_) => f.write_str("Custom"),
        }
    }
}
