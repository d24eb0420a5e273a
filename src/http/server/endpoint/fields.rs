//! The fields of the response with a value.

use std::time::Duration;

use crate::peers::PeerResponse;
use crate::wire::Fields;

/// The fields of a response, without the point in time when the value expires.
#[inline]
pub(super) fn fields_of(found: &PeerResponse) -> Fields {
    Fields {
        ttl_nanos: found.ttl.map(nanos),
        expire_unix_nanos: None,
        minute_qps: found.minute_qps,
        age_ms: age_ms(found),
        stale_ms: found.stale.map(|left| left.as_millis() as u64),
        removals: found.removals,
        load_micros: (!found.load_time.is_zero()).then(|| micros(found.load_time)),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Rounded up, so that no value seems younger than it is.
fn age_ms(found: &PeerResponse) -> Option<u64> {
    let age = found.age?;
    let part = u64::from(age.subsec_nanos().div_ceil(1_000_000));
    Some(age.as_secs().saturating_mul(1000).saturating_add(part))
}

pub(super) fn nanos(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)
}
