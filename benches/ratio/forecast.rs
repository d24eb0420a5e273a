//! Forecasts of a group beside the hit ratios of groups that have these capacities.

use super::common::{Report, wanted};
use super::traces::Trace;
use super::{group, replay_group};

/// Percentages of the weight of all objects. At less, these traces have too few entries for a forecast.
const PERCENTS: [f64; 4] = [3.0, 10.0, 30.0, 50.0];

/// The wanted cells of a trace.
pub fn cells(trace: &str) -> impl Iterator<Item = (String, f64)> {
    let cells = PERCENTS.map(|percent| (format!("forecast-{trace}@{percent}"), percent));
    cells
        .into_iter()
        .filter(move |(cell, _)| wanted(cell) || wanted("forecast"))
}

/// Prints the forecast for ¼, ½, 1, 2 and 4 times the capacity, each with the hit ratio of a group that has
/// this capacity.
pub fn measure(report: &mut Report, cell: &str, trace: &Trace, capacity: u64) {
    let (_, group) = replay_group(trace, group(capacity).forecast(true));
    let Some(forecast) = group.forecast() else {
        println!("{cell:24}  none, with {} entries", group.entry_count());
        return;
    };
    print!("{cell:24}");
    let names = ["quarter", "half", "same", "double", "quadruple"];
    for (name, point) in names.into_iter().zip(forecast.points) {
        let (real, _) = replay_group(trace, super::group(point.capacity));
        let (forecast, real) = (100.0 * point.hit_ratio, real.object_percent());
        report.add(cell, name, "forecast_hit_pct", "%", forecast);
        report.add(cell, name, "object_hit_pct", "%", real);
        print!("  {:>22}", format!("{name} {forecast:.1} ({real:.1})"));
    }
    println!();
}
