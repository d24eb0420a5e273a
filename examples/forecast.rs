//! The hit ratio at other capacities: would twice the memory be worth it?
//!
//! ```text
//! cargo run --release --example forecast
//! ```
//!
//! Serves two million gets of a shop's pages from a cache of 8 MiB, and prints the forecast as a chart.
//! Then it serves the same gets from a cache of twice the size, and prints the hit ratio that this really
//! gives.

use std::error::Error;

use larder::{BoxError, Context, Forecast, Group, Registry, Sink};

const PAGES: u64 = 100_000;
const GETS: u64 = 2_000_000;
const CAPACITY: u64 = 8 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let pages = serve(CAPACITY)?;
    let forecast = pages.forecast().ok_or("too few gets for a forecast")?;
    print_chart(&forecast, CAPACITY);

    let [_, _, now, double, _] = forecast.points;
    println!(
        "\nTwice the memory: {:.1} % of the gets from the cache instead of {:.1} %, and {:.0} % fewer loads.",
        100.0 * double.hit_ratio,
        100.0 * now.hit_ratio,
        100.0 * (double.hit_ratio - now.hit_ratio) / (1.0 - now.hit_ratio),
    );
    let stats = serve(double.capacity)?.stats();
    let measured = stats.cache_hits as f64 / stats.gets as f64;
    println!("Measured with twice the memory: {:.1} %.", 100.0 * measured);
    Ok(())
}

/// A group that has served all gets.
fn serve(capacity: u64) -> larder::Result<Group> {
    let pages = Group::builder("pages")
        .registry(&Registry::new())
        .max_capacity(capacity)
        .forecast(true)
        .build(render)?;
    let mut random = 7;
    for _ in 0..GETS {
        pages.get(&popular(&mut random).to_string())?;
    }
    Ok(pages)
}

/// A bar for each capacity.
fn print_chart(forecast: &Forecast, capacity: u64) {
    println!("hits of the last {} gets, by capacity\n", forecast.gets);
    for point in forecast.points {
        let eighths = (point.hit_ratio * 40.0 * 8.0).round() as usize;
        let mut bar = "█".repeat(eighths / 8);
        bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)));
        println!(
            "{:>6} MiB  {bar:<40}  {:.1} %{}",
            point.capacity as f64 / f64::from(1 << 20),
            100.0 * point.hit_ratio,
            if point.capacity == capacity {
                "  (now)"
            } else {
                ""
            },
        );
    }
}

/// A page by its popularity: page n is asked for about as often as 1/n.
fn popular(random: &mut u64) -> u64 {
    // Xorshift (Marsaglia, 2003).
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let unit = (*random >> 11) as f64 / (1_u64 << 53) as f64;
    (PAGES as f64).powf(unit) as u64
}

/// Pages of different lengths, up to 2 KB.
fn render(_: &Context, page: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
    let number: usize = page.parse()?;
    Ok(dest.set_str(&"<p>".repeat(20 + number * 7919 % 640))?)
}
