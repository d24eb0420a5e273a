//! Decides how much memory each group may take. Pure: readings in, limits out.

use std::time::Duration;

/// The memory that the process and its surroundings have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PressureReading {
    /// Each cgroup with a limit that the process is in, and the machine.
    pub(crate) levels: Vec<Level>,
    /// The time that tasks have waited for memory since the system or the cgroup began, in
    /// microseconds. `None` if the system does not report it, or if the waits are not due to these
    /// levels.
    pub(crate) stalled: Option<u64>,
}

/// A limit, and the memory that counts against it and cannot be dropped at once, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) limit: u64,
    pub(crate) used: u64,
}

impl Level {
    pub(crate) fn headroom(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// A group's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupSize {
    /// The capacity that the user set.
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    /// The limit of the last decision; `u64::MAX` if there is none.
    pub(crate) limit: u64,
}

/// The options of the decisions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// The part of each capacity that a group keeps in any case, 0 to 1.
    pub(crate) floor: f64,
    /// The headroom to keep, in bytes. `None` takes a part of each limit.
    pub(crate) reserve: Option<u64>,
}

/// By default three tenths of a limit are kept free, but at most this many bytes.
const MAX_RESERVE: u64 = 64 << 20;

/// The groups grow again when there was no pressure for this time.
const CALM: Duration = Duration::from_secs(10);

/// The time in which a limit grows from zero to the full capacity, if the headroom allows it.
const GROWTH: Duration = Duration::from_secs(16);

/// Waits count as pressure if they take this part of the time between two readings: a tenth.
const STALL_PART: u32 = 10;

/// Under waits, this part of the memory leaves: an eighth, once in [`STALL_PAUSE`].
const STALL_TRIM: u64 = 8;

/// The time for a trim to take effect before waits cause another one.
const STALL_PAUSE: Duration = Duration::from_secs(1);

/// Memory is read less often while each level has this many times the headroom that it has to keep.
const FAR: u64 = 16;

/// The state between decisions.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    options: Options,
    /// When the last reading was decided, and its stalled time. Times count from any one moment.
    last: Option<(Duration, Option<u64>)>,
    last_pressure: Option<Duration>,
    last_stall_trim: Option<Duration>,
}

/// The new limits, and what follows from the reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// By group, in bytes; `u64::MAX` for none.
    pub(crate) limits: Vec<u64>,
    /// The smallest headroom of all levels, in bytes.
    pub(crate) headroom: u64,
    /// Whether no group is limited and no level is near its limit.
    pub(crate) is_far: bool,
}

impl Controller {
    pub(crate) fn new(options: Options) -> Controller {
        Controller {
            options,
            last: None,
            last_pressure: None,
            last_stall_trim: None,
        }
    }

    /// The limits from now on. `now` never decreases.
    pub(crate) fn decide(
        &mut self,
        now: Duration,
        reading: &PressureReading,
        groups: &[GroupSize],
    ) -> Decision {
        let elapsed = self.last.map(|(last, _)| now.saturating_sub(last));
        let is_stalled = elapsed.is_some_and(|elapsed| self.is_stalled(elapsed, reading));
        self.last = Some((now, reading.stalled));

        let mut excess = reading
            .levels
            .iter()
            .map(|&level| self.shortage(level))
            .max()
            .unwrap_or(0);
        if is_stalled {
            self.last_pressure = Some(now);
            let is_due = |last| now.saturating_sub(last) >= STALL_PAUSE;
            if self.last_stall_trim.is_none_or(is_due) {
                self.last_stall_trim = Some(now);
                let used = sum(groups, |group| group.used);
                excess = excess.max(used / STALL_TRIM);
            }
        }
        let is_calm = |last| now.saturating_sub(last) >= CALM;
        let limits = if excess > 0 {
            self.last_pressure = Some(now);
            self.trimmed(excess, groups)
        } else if self.last_pressure.is_none_or(is_calm) {
            self.grown(elapsed.unwrap_or_default(), reading, groups)
        } else {
            groups.iter().map(|group| group.limit).collect()
        };
        let far = |level: &Level| level.headroom() / FAR > self.reserve(*level);
        Decision {
            is_far: reading.levels.iter().all(far) && limits.iter().all(|&limit| limit == u64::MAX),
            headroom: headroom(reading),
            limits,
        }
    }

    fn is_stalled(&self, elapsed: Duration, reading: &PressureReading) -> bool {
        let (Some(now), Some((_, Some(last)))) = (reading.stalled, self.last) else {
            return false;
        };
        let stalled = Duration::from_micros(now.saturating_sub(last));
        !elapsed.is_zero() && stalled >= elapsed / STALL_PART
    }

    /// The headroom that a level has to keep.
    fn reserve(&self, level: Level) -> u64 {
        let part = (level.limit / 10 * 3).min(MAX_RESERVE);
        self.options.reserve.unwrap_or(part).min(level.limit)
    }

    /// The bytes to give back to a level; a little more than it lacks, so that the next reading does
    /// not ask again.
    fn shortage(&self, level: Level) -> u64 {
        let reserve = self.reserve(level);
        match level.headroom() {
            headroom if headroom < reserve => reserve + reserve / 4 - headroom,
            _ => 0,
        }
    }

    /// Takes `bytes` from the groups, in proportion to what each holds above its floor.
    fn trimmed(&self, bytes: u64, groups: &[GroupSize]) -> Vec<u64> {
        let floor = |group: &GroupSize| (group.capacity as f64 * self.options.floor) as u64;
        let above = |group: &GroupSize| group.used.saturating_sub(floor(group));
        let total = sum(groups, above);
        let limit = |group: &GroupSize| {
            let part = part_of(bytes.min(total), above(group), total);
            let limit = group.used.saturating_sub(part).max(floor(group));
            limit.min(group.limit)
        };
        groups.iter().map(limit).collect()
    }

    /// Raises the limits step by step, as far as the headroom allows.
    fn grown(
        &self,
        elapsed: Duration,
        reading: &PressureReading,
        groups: &[GroupSize],
    ) -> Vec<u64> {
        let spare = |level: &Level| level.headroom().saturating_sub(self.reserve(*level));
        let spare = reading.levels.iter().map(spare).min().unwrap_or(u64::MAX);
        let total = sum(groups, |group| group.capacity);
        let step = |capacity: u64| {
            let nanos = u128::from(capacity) * elapsed.as_nanos() / GROWTH.as_nanos();
            u64::try_from(nanos).unwrap_or(u64::MAX)
        };
        let limit = |group: &GroupSize| {
            let room = part_of(spare, group.capacity, total);
            let grown = group.limit.saturating_add(step(group.capacity));
            let limit = grown.min(group.used.saturating_add(room)).max(group.limit);
            if limit >= group.capacity {
                u64::MAX
            } else {
                limit
            }
        };
        groups.iter().map(limit).collect()
    }
}

/// The smallest headroom of all levels.
fn headroom(reading: &PressureReading) -> u64 {
    let levels = reading.levels.iter();
    levels
        .map(|level| level.headroom())
        .min()
        .unwrap_or(u64::MAX)
}

fn sum(groups: &[GroupSize], bytes: impl Fn(&GroupSize) -> u64) -> u64 {
    groups.iter().map(bytes).fold(0, u64::saturating_add)
}

/// `whole * part / total`, rounded up.
fn part_of(whole: u64, part: u64, total: u64) -> u64 {
    let product = u128::from(whole) * u128::from(part);
    let part = product.div_ceil(u128::from(total.max(1)));
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const STEP: Duration = Duration::from_millis(250);

    fn controller() -> Controller {
        Controller::new(Options {
            floor: 0.25,
            reserve: None,
        })
    }

    fn group(capacity: u64, used: u64) -> GroupSize {
        GroupSize {
            capacity,
            used,
            limit: u64::MAX,
        }
    }

    fn reading(limit: u64, used: u64) -> PressureReading {
        PressureReading {
            levels: vec![Level { limit, used }],
            stalled: None,
        }
    }

    /// A group that fills all it may take, in a cgroup with other memory.
    struct Simulation {
        controller: Controller,
        group: GroupSize,
        limit: u64,
        now: Duration,
    }

    impl Simulation {
        /// One reading. Returns the memory of the cgroup before the group gives any back.
        fn step(&mut self, others: u64) -> u64 {
            self.group.used = self.group.limit.min(self.group.capacity);
            let used = others + self.group.used;
            self.now += STEP;
            let reading = reading(self.limit, used);
            let decision = self.controller.decide(self.now, &reading, &[self.group]);
            self.group.limit = decision.limits[0];
            self.group.used = self.group.used.min(self.group.limit);
            used
        }
    }

    #[test]
    fn node_makes_room_for_its_neighbor_and_grows_back() {
        let mut node = Simulation {
            controller: controller(),
            group: group(16 * MIB, 16 * MIB),
            limit: 32 * MIB,
            now: Duration::ZERO,
        };
        let own = 4 * MIB;
        for _ in 0..40 {
            node.step(own);
        }
        assert_eq!(node.group.limit, u64::MAX, "it has room enough");
        // The neighbor takes 13 MiB within two seconds.
        for n in 1..=8 {
            let used = node.step(own + 13 * MIB * n / 8);
            assert!(used < 32 * MIB, "{used} after {n} readings");
        }
        assert!(node.group.used <= 8 * MIB, "{}", node.group.used);
        assert!(node.group.used >= 4 * MIB);
        for _ in 0..240 {
            let used = node.step(own + 13 * MIB);
            assert!(
                used <= 25 * MIB,
                "{used}: it does not grow into the reserve"
            );
        }
        let gone = node.now;
        while node.group.limit != u64::MAX {
            node.step(own);
            assert!(
                node.now - gone <= Duration::from_secs(60),
                "{:?}",
                node.group
            );
        }
    }

    #[test]
    fn groups_give_in_proportion_to_what_they_hold_above_their_floor() {
        let groups = [
            group(100 * MIB, 10 * MIB),
            group(40 * MIB, 40 * MIB),
            group(40 * MIB, 25 * MIB),
        ];
        let decision = controller().decide(STEP, &reading(256 * MIB, 204 * MIB), &groups);
        // 52 MiB are left of the 64 to keep; 16 more come on top.
        let trimmed: Vec<u64> = groups
            .iter()
            .zip(&decision.limits)
            .map(|(group, limit)| group.used.saturating_sub(*limit))
            .collect();
        assert_eq!(trimmed[0], 0, "it is below its floor");
        assert!(decision.limits[0] == 25 * MIB, "but it may not grow beyond");
        assert_eq!(trimmed[1] / MIB, 18);
        assert_eq!(trimmed[2] / MIB, 9);
    }

    #[test]
    fn waits_for_memory_trim_an_eighth_each_second() {
        let mut controller = controller();
        let mut group = group(100 * MIB, 80 * MIB);
        let mut reading = reading(1 << 40, 0);
        let mut limits = Vec::new();
        for n in 0..9_u64 {
            // Every reading finds 30 ms of waiting in 250 ms.
            reading.stalled = Some(1_000_000 + n * 30_000);
            group.limit = controller
                .decide(STEP * n as u32, &reading, &[group])
                .limits[0];
            group.used = group.used.min(group.limit);
            limits.push(group.limit);
        }
        assert_eq!(limits[0], u64::MAX, "one reading is no difference");
        assert_eq!(limits[1..5], [70 * MIB; 4]);
        assert_eq!(limits[5], 70 * MIB - 70 * MIB / 8);
    }

    #[test]
    fn short_waits_are_no_pressure() {
        let mut controller = controller();
        for n in 0..100_u64 {
            let mut reading = reading(1 << 40, 0);
            reading.stalled = Some(n * 20_000);
            let decision = controller.decide(STEP * n as u32, &reading, &[group(MIB, MIB)]);
            assert_eq!(decision.limits, [u64::MAX]);
            assert!(decision.is_far);
        }
    }

    #[test]
    fn reserve_can_be_set() {
        let mut controller = Controller::new(Options {
            floor: 0.0,
            reserve: Some(10),
        });
        let groups = [group(100, 100)];
        assert_eq!(
            controller.decide(STEP, &reading(1000, 990), &groups).limits,
            [u64::MAX]
        );
        assert_eq!(
            controller
                .decide(2 * STEP, &reading(1000, 991), &groups)
                .limits,
            [97]
        );
    }

    proptest! {
        /// A group keeps its floor, gives no more than asked but for rounding, and is never limited above
        /// its capacity. Limits fall only under pressure.
        #[test]
        fn limits_stay_in_bounds(
            floor in 0.0..=1.0,
            steps in proptest::collection::vec(
                (0..2_000_u64, 0..4_000_u64, proptest::collection::vec((0..1_000_u64, 0..1_000_u64), 0..4), 0..30_u64, 0..100_000_u64),
                1..60,
            ),
        ) {
            let mut controller = Controller::new(Options { floor, reserve: None });
            let (mut now, mut stalled) = (Duration::ZERO, 0);
            let mut last: Vec<u64> = Vec::new();
            for (limit, used, sizes, seconds, wait) in steps {
                now += Duration::from_secs(seconds);
                stalled += wait;
                let reading = PressureReading { levels: vec![Level { limit, used }], stalled: Some(stalled) };
                let sizes = sizes.into_iter().enumerate();
                let groups: Vec<GroupSize> = sizes
                    .map(|(n, (capacity, used))| {
                        let limit = last.get(n).copied().unwrap_or(u64::MAX);
                        GroupSize { capacity, used: used.min(capacity).min(limit), limit }
                    })
                    .collect();
                let decision = controller.decide(now, &reading, &groups);
                prop_assert_eq!(decision.limits.len(), groups.len());
                for (group, &limit) in groups.iter().zip(&decision.limits) {
                    let floor = (group.capacity as f64 * floor) as u64;
                    prop_assert!(limit >= floor.min(group.limit));
                    prop_assert!(limit <= group.limit.max(group.capacity) || limit == u64::MAX);
                    let room = decision.headroom >= limit / 4;
                    prop_assert!(limit >= group.limit || !room || controller.last_pressure == Some(now));
                }
                last = decision.limits;
            }
        }
    }
}
