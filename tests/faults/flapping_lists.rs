//! Lists of peers that change again and again in a short time, while all nodes get keys.

use std::thread;
use std::time::Instant;

use crate::common::{PATIENCE, millis};
use crate::process::{Process, figure};

const KEYS: u64 = 1000;
const CHANGES: usize = 100;

/// The allowed growth. It is exceeded if each change leaves a thread or a descriptor behind.
const FEW: u64 = CHANGES as u64 / 5;

struct Held {
    threads: u64,
    descriptors: u64,
}

fn held(node: &mut Process) -> Held {
    Held {
        threads: node.number("threads larder"),
        descriptors: node.number("descriptors"),
    }
}

fn loads(nodes: &mut [Process]) -> usize {
    let loaded = nodes.iter_mut().map(|node| node.ask("loaded k"));
    let keys = loaded.map(|keys| keys.split_whitespace().count());
    keys.sum()
}

/// Two of three nodes get lists with and without the third one, without a pause between two lists.
#[test]
fn hundred_lists_in_a_row_cost_no_error_and_leave_nothing_behind() {
    let mut nodes = [(); 3].map(|()| Process::start(""));
    let urls = nodes.each_ref().map(|node| node.url.clone());
    let lists = [2, 3].map(|n| format!("peers {}", urls[..n].join(" ")));
    for node in &mut nodes {
        assert_eq!(node.ask(&lists[1]), "ready");
        assert_eq!(node.ask("load threads=4 keys=1000 prefix=k"), "started");
    }
    let begun = Instant::now();
    while loads(&mut nodes) < KEYS as usize {
        assert!(begun.elapsed() < 3 * PATIENCE, "some keys are not loaded");
        thread::sleep(millis(10));
    }
    thread::sleep(millis(500));
    let before: Vec<Held> = nodes.iter_mut().map(held).collect();
    let start = Instant::now();
    for change in 0..CHANGES {
        for node in &mut nodes[..2] {
            node.begin(&lists[change % 2]);
        }
    }
    for _ in 0..CHANGES {
        for node in &mut nodes[..2] {
            assert_eq!(node.line(), "ready");
        }
    }
    println!("{CHANGES} lists in {:?}", start.elapsed());
    thread::sleep(millis(500));
    let again = loads(&mut nodes) as u64 - KEYS;
    println!("{again} of {KEYS} keys are loaded again");
    assert!(again <= KEYS * 5 / 100, "{again}");
    for (node, before) in nodes.iter_mut().zip(before) {
        let start = Instant::now();
        loop {
            let now = held(node);
            if now.threads <= before.threads + FEW && now.descriptors <= before.descriptors + FEW {
                break;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} threads, {} descriptors",
                now.threads,
                now.descriptors
            );
            thread::sleep(millis(100));
        }
        let figures = node.ask("end");
        assert_eq!(figure(&figures, "errors"), 0, "{figures}");
        assert_eq!(figure(&figures, "wrong"), 0, "{figures}");
    }
}
