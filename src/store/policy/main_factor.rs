//! Learns how much longer an entry with hits may stay than a new one.

/// The factor of scores in main queues: a power of the fourth root of 2, from 1/256 to 4.
///
/// Entries that leave and return are counted by the queue that they left. If those of the main queues
/// return more often than those of the small ones, the factor shrinks, so that main queues get more of
/// the room, and the other way round. A factor of 1 comes near to LRU, 1/256 to LFU.
#[derive(Debug)]
pub(super) struct MainFactor {
    /// The exponent of 2, in fourths.
    exponent: i8,
    /// Entries that left a small or a main queue, and those of them that came back. All four are halved
    /// now and then, so that the past counts less and less.
    departures: [u64; 2],
    returns: [u64; 2],
}

const EXPONENTS: std::ops::RangeInclusive<i8> = -32..=8;

/// The powers of 2^(1/4) from 0 to 3, in units of 1/4096.
const FOURTH_ROOTS: [u64; 4] = [4096, 4871, 5793, 6889];

impl MainFactor {
    pub(super) fn new() -> MainFactor {
        MainFactor {
            exponent: -8,
            departures: [0; 2],
            returns: [0; 2],
        }
    }

    /// The product of a cost with the factor. A cost has at most 30 bits.
    #[inline]
    pub(super) fn of(&self, cost: u64) -> u64 {
        let root = FOURTH_ROOTS[(self.exponent & 3) as usize];
        // The exponent in whole powers of 2 is between -8 and 2.
        let product = (cost * root) << ((self.exponent >> 2) + 8);
        product >> 20
    }

    pub(super) fn count_departure(&mut self, was_main: bool) {
        self.departures[usize::from(was_main)] += 1;
    }

    pub(super) fn count_return(&mut self, was_main: bool) {
        self.returns[usize::from(was_main)] += 1;
    }

    /// The hits that an entry keeps when it is moved within its main queue, or to it.
    pub(super) fn hits_after_move(&self, hits: u8, was_main: bool) -> u8 {
        match self.exponent {
            _ if !was_main => 0,
            2.. => 0,
            -1..=1 => hits / 2,
            _ => hits - 1,
        }
    }

    /// Adapts the factor to a share of `entries` if enough entries have left.
    pub(super) fn learn(&mut self, entries: u32) {
        let period = u64::from(entries).max(64);
        let departures: u64 = self.departures.iter().sum();
        if departures < period {
            return;
        }
        let returns: u64 = self.returns.iter().sum();
        if returns >= ENOUGH_RETURNS {
            let main = 2 * self.returns[1] * (self.departures[0] + 1);
            let small = (2 * self.returns[0] + 1) * self.departures[1];
            if main > small {
                self.exponent = (self.exponent - 1).max(*EXPONENTS.start());
            } else if 3 * small > 4 * main {
                self.exponent = (self.exponent + 1).min(*EXPONENTS.end());
            }
        }
        if returns >= ENOUGH_RETURNS || departures >= 8 * period {
            for count in self.departures.iter_mut().chain(&mut self.returns) {
                *count /= 2;
            }
        }
    }
}

const ENOUGH_RETURNS: u64 = 8;
