//! Caches files of a directory. A missing file is a typed error, and no key leads out of the directory.
//!
//! ```text
//! cargo run --example getter_file [-- --dir DIR [KEY...]]
//! ```
//!
//! Gets each key, by default some of the library's sources, one of them twice, and some keys that are
//! refused. Prints a line for each, then the counters of the group.

mod file_getter;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use file_getter::FileGetter;
use larder::Group;
use lexopt::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = Args::parse()? else {
        println!("usage: getter_file [--dir DIR] [KEY...]");
        return Ok(());
    };
    let getter = FileGetter::new(&args.dir, MAX_FILE_SIZE)
        .map_err(|error| format!("cannot read the directory {}: {error}", args.dir.display()))?;
    let files = Group::builder("files")
        .max_capacity(8 << 20)
        .build(getter)?;

    println!("{:<24} {:>8}  {:>9}  answer", "key", "bytes", "time");
    for key in &args.keys {
        let hits_before = files.stats().cache_hits;
        let start = Instant::now();
        let result = files.get(key);
        let time = start.elapsed().as_secs_f64() * 1e6;
        let (bytes, answer) = match result {
            Ok(view) if files.stats().cache_hits > hits_before => {
                (view.len().to_string(), "from the cache".to_owned())
            }
            Ok(view) => (view.len().to_string(), "read from the disk".to_owned()),
            Err(error) => ("-".to_owned(), format!("{:?}: {error}", error.kind())),
        };
        println!("{key:<24} {bytes:>8}  {time:>6.1} µs  {answer}");
    }

    let stats = files.stats();
    println!(
        "\n{} gets: {} from the cache, {} files read, {} failed; {} bytes charged",
        stats.gets,
        stats.cache_hits,
        stats.local_loads,
        stats.local_load_errs,
        files.weighted_size(),
    );
    Ok(())
}

struct Args {
    dir: PathBuf,
    keys: Vec<String>,
}

impl Args {
    /// `None` if help is asked for.
    fn parse() -> Result<Option<Args>, lexopt::Error> {
        let mut dir = None;
        let mut keys = Vec::new();
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("dir") => dir = Some(parser.value()?.into()),
                Value(key) => keys.push(key.string()?),
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        if keys.is_empty() {
            keys.extend(DEFAULT_KEYS.map(str::to_owned));
        }
        let dir = dir.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../src").into());
        Ok(Some(Args { dir, keys }))
    }
}

const DEFAULT_KEYS: [&str; 7] = [
    "lib.rs",
    "store/mod.rs",
    "lib.rs",
    "no/such/file.rs",
    "store",
    "../Cargo.toml",
    "/etc/passwd",
];

const MAX_FILE_SIZE: u64 = 1 << 20;
