//! The caller's remaining time, which is sent in a header of the request.

use std::time::Duration;

/// The header that carries the caller's remaining time in decimal milliseconds.
pub(crate) const TIMEOUT_HEADER: &str = "larder-timeout-ms";

/// The value of [`TIMEOUT_HEADER`] for `remaining`.
///
/// It is rounded up. Rounded down, less than a millisecond would become 0, which means that the
/// time is over. It is at most [`MAX_TIMEOUT`].
pub(crate) fn timeout_millis(remaining: Duration) -> u64 {
    let capped = remaining.min(MAX_TIMEOUT);
    capped.as_secs() * 1000 + u64::from(capped.subsec_nanos().div_ceil(NANOS_PER_MILLI))
}

/// How long an owner waits for its getter before it answers that the key is
/// [loading](crate::ErrorKind::Loading), if its caller waits for `timeout`.
///
/// An eighth of the time, at least 20 ms, is left for the answer to arrive, also from a busy machine. If
/// `timeout` is less than 40 ms, half of it is left.
pub(crate) fn loading_after(timeout: Duration) -> Duration {
    timeout - (timeout / 8).max(MIN_WAY).min(timeout / 2)
}

/// Reads a [`TIMEOUT_HEADER`]: 1 to 19 decimal digits, no sign and no space; `None` if it is anything
/// else. Zero means that the time is over.
///
/// The result is at most [`MAX_TIMEOUT`], so that adding it to a clock cannot overflow.
pub(crate) fn parse_timeout(header: &[u8]) -> Option<Duration> {
    if !(1..=MAX_DIGITS).contains(&header.len()) {
        return None;
    }
    // A u64 holds any number of so many digits.
    let millis = header.iter().try_fold(0, |millis: u64, byte| {
        byte.is_ascii_digit()
            .then(|| 10 * millis + u64::from(byte - b'0'))
    });
    Some(Duration::from_millis(millis?).min(MAX_TIMEOUT))
}

/// The longest time that is sent or read: 24 hours.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The least time that is kept for the way of an answer.
const MIN_WAY: Duration = Duration::from_millis(20);

const MAX_DIGITS: usize = 19;
const NANOS_PER_MILLI: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn part_of_a_millisecond_is_rounded_up() {
        for (nanos, want) in [
            (0, 0),
            (1, 1),
            (999_999, 1),
            (1_000_000, 1),
            (1_000_001, 2),
            (250_000_000, 250),
            (2_000_000_001, 2001),
        ] {
            assert_eq!(timeout_millis(Duration::from_nanos(nanos)), want);
        }
    }

    #[test]
    fn time_over_a_day_is_capped_on_both_sides() {
        assert_eq!(timeout_millis(Duration::MAX), 86_400_000);
        for header in ["86400000", "86400001", "9999999999999999999"] {
            assert_eq!(
                parse_timeout(header.as_bytes()),
                Some(MAX_TIMEOUT),
                "{header}"
            );
        }
    }

    #[test]
    fn owner_waits_for_most_of_the_time() {
        for (millis, want) in [
            (0, 0),
            (16, 8),
            (40, 20),
            (100, 80),
            (800, 700),
            (30_000, 26_250),
        ] {
            let timeout = Duration::from_millis(millis);
            assert_eq!(loading_after(timeout), Duration::from_millis(want));
        }
    }

    #[test]
    fn only_digits_are_a_timeout() {
        assert_eq!(parse_timeout(b"0"), Some(Duration::ZERO));
        assert_eq!(parse_timeout(b"007"), Some(Duration::from_millis(7)));
        for header in [
            "", "+5", "-5", " 5", "5 ", "5ms", "5.0", "0x5", "1_000", "٣", "5,5", "5\r\n",
        ] {
            assert_eq!(parse_timeout(header.as_bytes()), None, "{header:?}");
        }
        assert_eq!(parse_timeout(&[b'1'; 20]), None);
        assert_eq!(parse_timeout(&[b'0'; 1 << 20]), None);
    }

    proptest! {
        #[test]
        fn timeout_round_trips_to_less_than_a_millisecond_more(
            nanos in 0..=MAX_TIMEOUT.as_nanos() as u64,
        ) {
            let sent = Duration::from_nanos(nanos);
            let read = parse_timeout(timeout_millis(sent).to_string().as_bytes()).expect("it parses");
            prop_assert!(read >= sent);
            prop_assert!(read - sent < Duration::from_millis(1));
        }

        #[test]
        fn arbitrary_headers_do_not_panic(header in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Some(read) = parse_timeout(&header) {
                prop_assert!(read <= MAX_TIMEOUT);
            }
        }
    }
}
