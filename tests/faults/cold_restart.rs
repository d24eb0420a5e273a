//! A node is killed and starts again while all nodes load new keys, and the origin serves few loads at a time.

use std::thread;

use crate::common::millis;
use crate::process::{Process, figure};

#[test]
fn cold_node_never_runs_more_getters_at_once_than_its_limit() {
    const LIMIT: u64 = 8;
    let options = format!("max_loads={LIMIT} exchange_ms=1000 connect_ms=250");
    let mut nodes = [(); 3].map(|()| Process::start(&options));
    let urls = nodes.each_ref().map(|node| node.url.clone()).join(" ");
    for node in &mut nodes {
        assert_eq!(node.ask(&format!("peers {urls}")), "ready");
    }
    // All keys are new, so each get needs a load of 10 ms.
    let load = "load threads=24 ms=20000 prefix=slow:10:";
    for node in &mut nodes[..2] {
        assert_eq!(node.ask(load), "started");
    }
    thread::sleep(millis(1500));
    let port = nodes[2].same_port();
    nodes[2].kill();
    thread::sleep(millis(1500));
    nodes[2] = Process::start(&format!("{options} {port}"));
    assert_eq!(nodes[2].ask(&format!("peers {urls}")), "ready");
    assert_eq!(nodes[2].ask(load), "started");
    thread::sleep(millis(3000));
    for node in &mut nodes {
        let figures = node.ask("end");
        assert_eq!(figure(&figures, "errors"), 0, "{figures}");
        assert_eq!(figure(&figures, "wrong"), 0, "{figures}");
        let most: u64 = node.number("most-at-once");
        assert!((1..=LIMIT).contains(&most), "{most} getters at once");
    }
}
