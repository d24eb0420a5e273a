//! Caches rows of an SQLite database that four threads read.
//!
//! ```text
//! cargo run --release -p databases --example getter_sqlite
//! ```
//!
//! Fills a database file in the temporary directory with 2,000 rows, reads them 100,000 times
//! through a group that has room for half of them, a few rows much more often than the rest, and
//! prints how many reads reached the database.

mod idle;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use idle::Idle;
use larder::{BoxError, Context, Getter, Group, Sink};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

fn main() -> Result<(), BoxError> {
    let db = TempDir::new()?.with_database()?;
    let articles = &Group::builder("articles")
        .max_capacity(CAPACITY)
        .build(SqliteGetter::new(&db.file))?;

    let start = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS as u64)
            .map(|seed| scope.spawn(move || read(articles, seed + 1)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| "a reader panicked")?)
    })?;
    let time = start.elapsed();

    let unknown = articles.get("no-such-article");
    let Err(error) = unknown else {
        return Err("a row that does not exist was found".into());
    };

    let stats = articles.stats();
    println!("{ROWS} rows in {}", db.file.display());
    println!(
        "{} gets by {THREADS} threads in {:.0} ms, room for {} KiB, {} rows cached at the end",
        stats.gets,
        time.as_secs_f64() * 1e3,
        CAPACITY >> 10,
        articles.entry_count(),
    );
    println!(
        "  {:>6} from the cache ({:.1} %)",
        stats.cache_hits,
        100.0 * stats.cache_hits as f64 / stats.gets as f64,
    );
    println!("  {:>6} loads from the database", stats.local_loads);
    println!(
        "  {:>6} waited for a load that another thread had begun",
        stats.loads - stats.loads_deduped,
    );
    println!("  {:>6} failed: {error}", stats.local_load_errs);
    Ok(())
}

/// Reads articles, low numbers more often than high ones, and checks each.
fn read(articles: &Group, seed: u64) -> Result<(), BoxError> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..READS / THREADS {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let uniform = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let id = (ROWS as f64 * uniform.powi(3)) as usize;
        let mut text = String::new();
        articles.get_into(&Context::background(), &format!("article-{id}"), &mut text)?;
        if text != article(id) {
            return Err(format!("article {id} is not what the database holds").into());
        }
    }
    Ok(())
}

/// A getter that looks keys up in a table.
struct SqliteGetter {
    file: PathBuf,
    idle: Idle<Connection>,
}

impl SqliteGetter {
    fn new(file: &Path) -> Self {
        SqliteGetter {
            file: file.to_owned(),
            idle: Idle::new(),
        }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(&self.file, flags)
    }
}

impl Getter for SqliteGetter {
    fn get(&self, _ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
        let connection = self.idle.take(|| self.connect())?;
        let found = look_up(&connection, key);
        self.idle.put(connection);
        match found? {
            Some(text) => Ok(dest.set_str(&text)?),
            None => Err(larder::Error::not_found(format!("no article {key:?}")).into()),
        }
    }
}

fn look_up(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT text FROM articles WHERE name = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// A directory that is removed when this is dropped.
struct TempDir {
    path: PathBuf,
}

struct Database {
    file: PathBuf,
    _dir: TempDir,
}

impl TempDir {
    fn new() -> Result<Self, BoxError> {
        let name = format!("larder-getter-sqlite-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(TempDir { path })
    }

    fn with_database(self) -> Result<Database, BoxError> {
        let file = self.path.join("articles.db");
        let mut connection = Connection::open(&file)?;
        connection.execute_batch("CREATE TABLE articles (name TEXT PRIMARY KEY, text TEXT)")?;
        let rows = connection.transaction()?;
        for id in 0..ROWS {
            rows.execute(
                "INSERT INTO articles VALUES (?1, ?2)",
                (format!("article-{id}"), article(id)),
            )?;
        }
        rows.commit()?;
        Ok(Database { file, _dir: self })
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Between 0.1 and 2 KiB of text.
fn article(id: usize) -> String {
    format!("This is article {id}. ").repeat(5 + id * 37 % 90)
}

const ROWS: usize = 2_000;
const READS: usize = 100_000;
const THREADS: usize = 4;

/// About half of what the rows take.
const CAPACITY: u64 = 1 << 20;
