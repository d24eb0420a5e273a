//! The resident set of a process whose group is filled by several threads. Each case runs in a process of
//! its own, so that other tests do not change it. Linux only: the figures come from /proc.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use larder::{ByteView, Group, Registry, getter_fn};

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 16 * MIB;
const THREADS: u64 = 8;

/// Values of different sizes, and the ways in which they come and go.
#[derive(Clone, Copy)]
struct Mix {
    name: &'static str,
    size: fn(u64) -> usize,
    /// The number of insertions.
    count: u64,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Insert,
    /// Every second operation loads a key again that was loaded a while ago.
    Replace,
    Expire,
    Remove,
    /// Each thread holds its last 20 values.
    Hold,
}

const MIXES: [Mix; 9] = [
    mix("mixed", mixed, 20_000, Way::Insert),
    mix("tiny", |_| 10, 260_000, Way::Insert),
    mix(
        "large",
        |n| between(n, 16 << 10, 512 << 10),
        600,
        Way::Insert,
    ),
    mix("edges", edges, 2000, Way::Insert),
    mix("drifting", drifting, 48_000, Way::Insert),
    mix("replaced", mixed, 10_000, Way::Replace),
    mix("expiring", mixed, 20_000, Way::Expire),
    mix("removed", mixed, 20_000, Way::Remove),
    mix("held", mixed, 20_000, Way::Hold),
];

const fn mix(name: &'static str, size: fn(u64) -> usize, count: u64, way: Way) -> Mix {
    Mix {
        name,
        size,
        count,
        way,
    }
}

/// 16 bytes to 64 KiB, as many in each doubling.
fn mixed(n: u64) -> usize {
    let low = 16 << (random(n) % 12);
    between(random(n), low, 2 * low)
}

/// Lengths that malloc treats in different ways.
fn edges(n: u64) -> usize {
    const EDGES: [usize; 8] = [24, 1032, 1040, 4096, 65_536, 131_040, 131_072, 262_144];
    EDGES[(random(n) % 8) as usize] - 16
}

/// Sizes that grow by a factor of 8 with each step, and shrink again.
fn drifting(n: u64) -> usize {
    let low = [16, 128, 1024, 8192, 1024, 128][(n / 4000 % 6) as usize];
    between(n, low, 8 * low)
}

fn between(n: u64, low: usize, high: usize) -> usize {
    low + (random(n) >> 20) as usize % (high - low)
}

/// SplitMix64.
fn random(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn group(mix: Mix) -> Group {
    let builder = Group::builder("memory")
        .registry(&Registry::new())
        .max_capacity(CAPACITY);
    let builder = match mix.way {
        Way::Expire => builder.time_to_live(Duration::from_millis(50)),
        _ => builder,
    };
    let getter = getter_fn(move |_, key, dest| {
        static BYTES: [u8; 1 << 19] = [7; 1 << 19];
        Ok(dest.set_bytes(&BYTES[..(mix.size)(key.parse()?)])?)
    });
    builder.build(getter).expect("a group")
}

fn get(group: &Group, n: u64) -> ByteView {
    group.get(&n.to_string()).expect("a value")
}

/// Fills the group by several threads. Returns the largest resident set on the way, in bytes.
fn fill(group: &Group, mix: Mix) -> u64 {
    let start = &Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    start.wait();
                    fill_by_one_thread(group, mix, thread);
                })
            })
            .collect();
        let mut highest = 0;
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            highest = highest.max(resident());
            thread::sleep(Duration::from_millis(1));
        }
        highest.max(resident())
    })
}

fn fill_by_one_thread(group: &Group, mix: Mix, thread: u64) {
    let mut held = VecDeque::new();
    for n in (thread..mix.count).step_by(THREADS as usize) {
        let value = get(group, n);
        let earlier = n.saturating_sub(50 * THREADS);
        match mix.way {
            Way::Insert | Way::Expire => {}
            Way::Replace => {
                group.invalidate(&earlier.to_string());
                drop(get(group, earlier));
            }
            Way::Remove => {
                group.invalidate(&earlier.to_string());
            }
            Way::Hold => {
                held.push_back(value);
                if held.len() > 20 {
                    held.pop_front();
                }
            }
        }
    }
}

/// The resident memory of this process that is not from files, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number") << 10
}

const MIX: &str = "LARDER_TEST_MIX";

/// Runs a test again for each mix, in a process of its own, where it returns the mix.
fn in_own_process(test: &str, mixes: &[Mix]) -> Option<Mix> {
    if let Ok(name) = std::env::var(MIX) {
        return MIXES.into_iter().find(|mix| mix.name == name);
    }
    for mix in mixes {
        let output = Command::new(std::env::current_exe().expect("the path of this program"))
            .args([
                "--exact",
                &format!("resident_memory::{test}"),
                "--nocapture",
            ])
            .env(MIX, mix.name)
            .output()
            .expect("this program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let passed = output.status.success() && text.contains("1 passed");
        assert!(passed, "{}: {text}{errors}", mix.name);
    }
    None
}

#[test]
fn threads_fill_a_group_within_its_limit_and_clear_returns_the_memory() {
    let test = "threads_fill_a_group_within_its_limit_and_clear_returns_the_memory";
    let Some(mix) = in_own_process(test, &MIXES) else {
        return;
    };
    let group = group(mix);
    let before = resident();
    let highest = fill(&group, mix);
    let most = before + CAPACITY * 115 / 100 + 4 * MIB;
    assert!(highest <= most, "{highest} bytes, {before} before");
    if !matches!(mix.way, Way::Expire | Way::Remove) {
        assert!(
            group.weighted_size() > CAPACITY / 2,
            "the fill is too short"
        );
    }
    group.clear_local();
    let after = resident();
    assert!(after <= before + 2 * MIB, "{after} bytes, {before} before");
}

#[test]
fn trim_returns_memory_to_the_system() {
    let Some(mix) = in_own_process("trim_returns_memory_to_the_system", &MIXES[..5]) else {
        return;
    };
    let group = group(mix);
    fill(&group, mix);
    for part in [8, 4, 2] {
        let (before, asked) = (resident(), group.weighted_size() / part);
        let left = group.trim(asked);
        let returned = before.saturating_sub(resident());
        assert!(
            returned >= asked * 9 / 10,
            "{returned} of {asked} bytes returned, entries of {left} bytes left"
        );
    }
    assert!(group.entry_count() > 0, "the trims took all");
}
