//! The hit ratio of a group at other capacities.

use super::Group;
#[cfg(doc)]
use super::GroupBuilder;
use crate::store::Forecast;

impl Group {
    /// The hit ratio that this process's cache would have with ¼, ½, 2 and 4 times its capacity.
    ///
    /// `None` if the group was built without [`forecast`](GroupBuilder::forecast), with fewer than about
    /// 4,000 cached entries, or before some tens of thousands of gets. A forecast is about the last gets, of
    /// which older ones count less. [`set_capacity`](Self::set_capacity) begins anew.
    ///
    /// The forecasts for ½ and 2 times the capacity are mostly within two points of the true ratio, those
    /// for ¼ and 4 times within five. A get that fails, or that finds an expired entry, is a miss at
    /// every capacity. Neither the number of shards nor the limit of the hot share is modelled.
    ///
    /// ```
    /// # use larder::{Group, Registry};
    /// # let builder = Group::builder("pages").registry(&Registry::new());
    /// # let load = larder::getter_fn(|_, key, dest| Ok(dest.set_str(key)?));
    /// let pages = builder.max_capacity(1 << 20).forecast(true).build(load)?;
    /// for n in 0..200_000_u32 {
    ///     pages.get(&format!("page {}", n.wrapping_mul(2_654_435_761) % 20_000))?;
    /// }
    /// let forecast = pages.forecast().expect("there were enough gets");
    /// for point in forecast.points {
    ///     println!("{} bytes: {:.1} %", point.capacity, 100.0 * point.hit_ratio);
    /// }
    /// # Ok::<(), larder::Error>(())
    /// ```
    pub fn forecast(&self) -> Option<Forecast> {
        self.inner.store.forecast()
    }
}
