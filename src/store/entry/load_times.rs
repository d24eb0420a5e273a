//! When the loads of a shard's entries began, in 4 bytes for each entry.

use std::time::Duration;

use crate::clock::Tick;

/// Packs the start of a load into 32 bits: the milliseconds since a base, rounded down. So the age of a
/// value is never less than it was.
///
/// The base of a shard moves at most once in 24 days, so no number wraps. A load that began before the
/// base has the number [`UNKNOWN`].
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct LoadTimes {
    base: Tick,
}

/// The number of a load whose begin is not known, or was before the base.
pub(super) const UNKNOWN: u32 = 0;

const UNIT: Duration = Duration::from_millis(1);

/// The number of a load that begins when the base moves.
const HALF: u32 = 1 << 31;

/// When the load of an entry began, still packed, because most hits do not need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadTime {
    times: LoadTimes,
    number: u32,
}

impl LoadTime {
    /// `None` if it is not known.
    pub(crate) fn tick(self) -> Option<Tick> {
        self.times.unpack(self.number)
    }
}

impl LoadTimes {
    /// Loads that began at most 24 days before `now` have a number.
    pub(in crate::store) fn new(now: Tick) -> LoadTimes {
        let base = now.before(HALF * UNIT);
        LoadTimes {
            base: base.unwrap_or(now),
        }
    }

    /// The number of a load. If the load began too long after the base, moves the base, and with it all
    /// `numbers`.
    #[inline]
    pub(in crate::store) fn pack<'a>(
        &mut self,
        begun: Option<Tick>,
        numbers: impl Iterator<Item = &'a mut u32>,
    ) -> u32 {
        let Some(begun) = begun.filter(|&begun| begun > self.base) else {
            return UNKNOWN;
        };
        let units = |base| begun.since(base).as_nanos() / UNIT.as_nanos();
        if let Ok(number) = u32::try_from(units(self.base)) {
            return number;
        }
        self.move_base(units(self.base) as u64 - u64::from(HALF), numbers);
        units(self.base) as u32
    }

    /// The time of the load with this number.
    #[inline]
    pub(in crate::store) fn of(self, number: u32) -> LoadTime {
        LoadTime {
            times: self,
            number,
        }
    }

    #[inline]
    pub(super) fn unpack(&self, number: u32) -> Option<Tick> {
        let since_base = UNIT.as_nanos() as u64 * u64::from(number);
        (number != UNKNOWN).then(|| self.base.after(Duration::from_nanos(since_base)))
    }

    #[cold]
    fn move_base<'a>(&mut self, units: u64, numbers: impl Iterator<Item = &'a mut u32>) {
        self.base = self
            .base
            .after(Duration::from_nanos(UNIT.as_nanos() as u64 * units));
        for number in numbers {
            let moved = u64::from(*number).saturating_sub(units);
            *number = u32::try_from(moved).unwrap_or(UNKNOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn time_of_a_load_is_rounded_down_to_a_millisecond() {
        let clock = Clock::manual();
        let mut times = LoadTimes::new(clock.now());
        for (nanos, whole) in [(0, 0), (999_999, 0), (1_000_000, 1), (2_500_000, 2)] {
            let number = times.pack(
                Some(clock.now().after(Duration::from_nanos(nanos))),
                [].iter_mut(),
            );
            let whole = clock.now().after(Duration::from_millis(whole));
            assert_eq!(times.unpack(number), Some(whole));
        }
    }

    #[test]
    fn unknown_and_ancient_times_are_unknown() {
        let now = Clock::manual().now();
        let mut times = LoadTimes::new(now);
        assert_eq!(times.pack(None, [].iter_mut()), UNKNOWN);
        assert_eq!(times.pack(now.before(25 * DAY), [].iter_mut()), UNKNOWN);
        assert_eq!(times.unpack(UNKNOWN), None);
        let known = times.pack(now.before(24 * DAY), [].iter_mut());
        assert_eq!(times.unpack(known), now.before(24 * DAY));
    }

    proptest! {
        /// An age is exact to a millisecond. It is unknown only if the load began more than 24 days ago.
        #[test]
        fn age_is_exact_or_unknown_however_the_base_moves(steps in prop::collection::vec(0..60_u64 * 86_400_000, 1..40)) {
            let clock = Clock::manual();
            let mut times = LoadTimes::new(clock.now());
            let (mut numbers, mut begins): (Vec<u32>, _) = (Vec::new(), Vec::new());
            for step in steps {
                clock.advance(Duration::from_millis(step));
                let begun = clock.now();
                let number = times.pack(Some(begun), numbers.iter_mut());
                numbers.push(number);
                begins.push(begun);
                for (&number, &begun) in numbers.iter().zip(&begins) {
                    match times.unpack(number) {
                        Some(found) => prop_assert!(found <= begun && begun.since(found) < UNIT),
                        None => prop_assert!(clock.now().since(begun) > 24 * DAY),
                    }
                }
            }
        }
    }
}
