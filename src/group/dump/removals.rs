//! The removals in a dump: those that the process had applied when it wrote its entries.

use std::time::Duration;

use super::restore::RESOLUTION;
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Inner;
use crate::group::removal_clocks::{KeyStripe, Table};
use crate::panics::FirstPanic;

impl Inner {
    /// The removals that were applied here, for the header of a dump.
    pub(super) fn encoded_removals(&self) -> Vec<u8> {
        let (clocks, applied) = self.removals.table(self.store.clock()).encode();
        let mut encoded = (clocks.len() as u64).to_le_bytes().to_vec();
        encoded.extend(clocks);
        encoded.extend(applied);
        encoded
    }

    /// Applies the removals of a dump that was written at most this long ago, if that is known, and returns
    /// them as of then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidDump`] if they are malformed.
    pub(super) fn merge_dumped(
        &self,
        encoded: &[u8],
        downtime: Option<Duration>,
        panic: &mut FirstPanic,
    ) -> Result<Table> {
        let table = decode(encoded).ok_or_else(|| {
            let message = "the removals in the dump are malformed";
            Error::new(ErrorKind::InvalidDump, message)
        })?;
        // If the time is not known, the removals count as made now, so that more values are dropped.
        let dumped = table.clone();
        let table = match downtime {
            // It is rounded up, and a removal may not look older than it is.
            Some(downtime) => table.older_by(downtime.saturating_sub(2 * RESOLUTION)),
            None => table.made_now(),
        };
        panic.catch(|| self.merge(&table));
        Ok(dumped)
    }

    /// Whether removals that may concern a key were applied here since a dump with these removals.
    pub(super) fn has_removed_since(&self, dumped: &Table, key: &str) -> bool {
        self.removals.differ_from(dumped, key)
    }

    /// Whether a removal until `now` may concern a value of this age, `None` if the age is not known.
    pub(super) fn may_be_removed(&self, key: &str, age: Option<Duration>, now: Tick) -> bool {
        let since_removal = self.removals.since_removal(KeyStripe::of(key), now);
        since_removal.is_some_and(|since| age.is_none_or(|age| age >= since))
    }
}

fn decode(encoded: &[u8]) -> Option<Table> {
    let (len, rest) = encoded.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let (clocks, applied) = rest.split_at_checked(len)?;
    Table::decode(clocks, applied)
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::context::Context;
    use crate::getter::getter_fn;
    use crate::group::Group;
    use crate::group::registry::Registry;

    #[test]
    fn removal_in_a_dump_does_not_look_older_than_it_is() {
        let clock = Clock::manual();
        let group = || {
            let builder = Group::builder("colors").registry(&Registry::new());
            let load = getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
            builder.clock(clock.clone()).build(load).expect("a group")
        };
        let before = group();
        before
            .remove(&Context::background(), "key")
            .expect("no peers");
        let encoded = before.inner.encoded_removals();
        let downtime = Duration::from_millis(100);
        clock.advance(downtime);
        let after = group();
        let merged = after.inner.merge_dumped(
            &encoded,
            Some(downtime + RESOLUTION),
            &mut FirstPanic::default(),
        );
        merged.expect("well-formed");
        // A value whose load began just before the removal.
        assert!(
            after
                .inner
                .may_be_removed("key", Some(downtime), clock.now())
        );
    }
}
