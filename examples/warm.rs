//! Warms a cache after a start, and shows a progress bar.
//!
//! ```text
//! cargo run --release --example warm
//! ```
//!
//! The origin answers a query of up to 128 keys in 20 ms and serves two at a time.

use std::error::Error;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use larder::{Group, Sink, WarmProgress, bulk_fn};

const PAGES: usize = 10_000;
const WIDTH: usize = 40;

fn main() -> Result<(), Box<dyn Error>> {
    let pages = Group::builder("pages")
        .max_concurrent_loads(2)
        .build_bulk(bulk_fn(|_ctx, keys, sinks| {
            thread::sleep(Duration::from_millis(20));
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(&format!("the text of {key}"))?;
            }
            Ok(())
        }))?;
    let started = Instant::now();
    // The most important keys come first: the warming ends when the cache is full.
    let keys = (0..PAGES).map(|n| format!("page {n}")).collect();
    let warming = pages.warm(keys, |progress| draw(&progress))?;
    let end = warming.join();
    let took = started.elapsed();
    println!(
        "\n{} loaded, {} failed, in {took:.1?}",
        end.loaded, end.failed
    );
    assert_eq!(pages.get("page 17")?, "the text of page 17");
    Ok(())
}

/// Draws the bar over the last one.
fn draw(progress: &WarmProgress) {
    let filled = WIDTH * progress.done / progress.total.max(1);
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
    print!("\r[{bar}] {} of {}", progress.done, progress.total);
    // Without it, a terminal shows the bar only at the end of the line.
    let _ = io::stdout().flush();
}
