//! Load in both directions at once.

use std::thread;
use std::time::Duration;

use crate::cluster::{Program, cluster, keys_owned_by};
use crate::faults::assert_clean;

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn load_of_32_goroutines_and_32_threads_causes_no_error() {
    let seconds = std::env::var("LARDER_INTEROP_SECONDS");
    let seconds: u64 = seconds.map_or(30, |text| text.parse().expect("seconds"));
    under_load(&["--idle", "32"], Duration::from_secs(seconds));
}

/// Go keeps two idle connections to a peer, so most requests of 32 goroutines open a new one.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn load_by_gos_default_transport_causes_no_error() {
    under_load(&[], Duration::from_secs(3));
}

/// The server limits the connections of one address, except from its own machine. So the nodes need
/// different addresses.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn load_of_64_goroutines_of_another_address_is_not_refused() {
    let Ok(addresses) = std::env::var("LARDER_INTEROP_ADDRESSES") else {
        println!("SKIPPED: there are no addresses; run.sh makes them, in a namespace of its own");
        return;
    };
    let (listen, from) = addresses.split_once(' ').expect("two addresses");
    let listen = format!("{listen}:0");
    let larder = Program::Larder.start(&["--listen", &listen]);
    let go = Program::Go.start(&["--listen", &listen, "--from", from]);
    go.set_peers(&[&larder.url]);
    let keys: Vec<String> = (0..1000).map(|i| format!("key-{i}")).collect();
    let report = go.hammer(&keys, 64, Duration::from_secs(3));
    println!("64 goroutines at another address for 3 s: {report}");
    assert_clean(&report);
    assert_eq!((go.stat("peer_errors"), go.stat("local_loads")), (0, 0));
}

fn under_load(go_flags: &[&str], time: Duration) {
    let starts = [(Program::Go, go_flags), (Program::Larder, &[])];
    let nodes = starts.iter().chain(&starts);
    let nodes = cluster(nodes.map(|(program, flags)| program.start(flags)));
    let (gos, larders) = ([&nodes[0], &nodes[2]], [&nodes[1], &nodes[3]]);
    let ours = keys_owned_by(gos[0], &larders, "ours-", 1000);
    let theirs = keys_owned_by(gos[0], &gos, "theirs-", 1000);

    thread::scope(|scope| {
        let go = scope.spawn(|| gos[0].hammer(&ours, 32, time));
        let larder = scope.spawn(|| larders[0].hammer(&theirs, 32, time));
        for (name, load) in [("32 goroutines", go), ("32 threads", larder)] {
            let report = load.join().expect("the load ends");
            println!("{name} for {time:?}: {report}");
            assert_clean(&report);
        }
    });
    for node in [gos[0], larders[0]] {
        // Only this counter shows an error of a peer, because the getter runs instead.
        assert_eq!(node.stat("peer_errors"), 0, "{node:?}");
    }
    // Each key of a larder node was loaded once. Go's group caches nothing.
    for larder in larders {
        assert!(
            larder.loads().values().all(|&count| count == 1),
            "{larder:?}"
        );
        assert!(
            larder.loads().keys().all(|key| ours.contains(key)),
            "{larder:?}"
        );
    }
}
