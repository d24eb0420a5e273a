//! The smallest node: a group, a server, and clients for the peers.
//!
//! ```text
//! cargo run --profile small -p larder-examples --no-default-features --features http \
//!     --example node -- 127.0.0.1:8080 http://127.0.0.1:8080 http://127.0.0.1:8081
//! curl -s localhost:8080/_groupcache/squares/12 | tail -c 3
//! ```
//!
//! The arguments are the address to listen at, the URL of this node, and those of its peers. It prints
//! the address, and how many microseconds after its start the first get had its value. It runs until it
//! is stopped. The profile `small` makes programs of few bytes; `cargo bench --bench footprint` builds
//! and measures this one.

use std::error::Error;
use std::time::Instant;

use larder::http::HttpPool;

fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(own_url)) = (args.next(), args.next()) else {
        return Err("usage: node ADDRESS OWN-URL [PEER-URL...]".into());
    };
    let pool = HttpPool::new(&own_url)?;
    let mut urls = vec![own_url];
    urls.extend(args);
    pool.set(&urls)?;
    let squares = larder::new_group(
        "squares",
        16 << 20,
        larder::getter_fn(|_ctx, key, dest| {
            let number: u32 = key.parse()?;
            Ok(dest.set_str(&(u64::from(number) * u64::from(number)).to_string())?)
        }),
    )?;
    let server = pool.serve(&address)?;
    let own_key = (0..).map(|number: u32| number.to_string());
    let mut own_key = own_key.filter(|key| pool.owner(key).as_ref() == urls.first());
    squares.get(&own_key.next().ok_or("no key is this node's")?)?;
    println!("{} {}", server.local_addr(), started.elapsed().as_micros());
    loop {
        std::thread::park();
    }
}
