//! The fields of a peer's response, and the times that they stand for.

use std::time::Duration;

use crate::byteview::ByteView;
use crate::clock::Clock;
use crate::peers::PeerResponse;
use crate::wire;

/// The response with this value and the fields of a body, which names its key or not.
#[inline]
pub(super) fn response_of(fields: &wire::Fields, is_keyed: bool, value: ByteView) -> PeerResponse {
    PeerResponse {
        value,
        ttl: ttl_of(fields),
        age: fields.age_ms.map(Duration::from_millis),
        stale: fields.stale_ms.map(Duration::from_millis),
        // A server of larder leaves the field out if there was no removal.
        removals: is_keyed.then(|| fields.removals.unwrap_or(0)),
        minute_qps: fields.minute_qps,
        load_time: fields
            .load_micros
            .map_or(Duration::ZERO, Duration::from_micros),
    }
}

/// How long a value may be kept. Zero if its time has passed: the value is then returned to the
/// caller but not cached.
fn ttl_of(fields: &wire::Fields) -> Option<Duration> {
    if let Some(nanos) = fields.ttl_nanos {
        return Some(Duration::from_nanos(nanos));
    }
    let left = fields
        .expire_unix_nanos?
        .saturating_sub(Clock::system().unix_nanos());
    Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
}
