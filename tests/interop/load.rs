//! Load in both directions at once.

use std::thread;
use std::time::Duration;

use crate::cluster::{Program, cluster, keys_owned_by};
use crate::faults::assert_clean;

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn thirty_two_goroutines_and_thirty_two_threads_see_no_error() {
    let seconds = std::env::var("LARDER_INTEROP_SECONDS");
    let seconds: u64 = seconds.map_or(30, |text| text.parse().expect("seconds"));
    under_load(&["--idle", "32"], Duration::from_secs(seconds));
}

/// With two idle connections to a peer, most requests of 32 goroutines make a new one and close it.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn gos_default_transport_sees_no_error_either() {
    under_load(&[], Duration::from_secs(3));
}

/// The server limits the connections of one address, but not those from its own machine: the nodes
/// need addresses of their own.
#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn sixty_four_goroutines_of_another_machine_are_not_refused() {
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
        // An error of a peer is nowhere to be seen but here: the getter makes up for it.
        assert_eq!(node.stat("peer_errors"), 0, "{node:?}");
    }
    // Each key that a larder node owns was loaded once; Go's group keeps nothing.
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
