//! Nodes that join, leave and are restarted, one after the other, while all nodes get keys.
//!
//! The nodes are in this process. The load, not the time, decides when a test goes on, and values get older
//! only in its pauses. `LARDER_FAULTS_PAUSE_SECONDS=12` lets them get older by the clock of the system.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::consistent_hash::Preset;
use larder::http::{HttpPool, PeerState};
use larder::{Clock, Context, Group, HotAdmission, Registry};

use crate::cluster::{Node, Setup};
use crate::common::{PATIENCE, eventually, millis};
use crate::late_peeks::{Late, LatePeeks, only_peeks_are_posts};

const KEYS: u64 = 600;

/// The number of gets of each key for which [`Cluster::wait_for_load`] waits. With fewer, a node may get no
/// request for one of its keys.
const ROUNDS: u64 = 12;

/// The counters that all nodes share.
#[derive(Default)]
struct Counts {
    loads: AtomicU64,
    gets: AtomicU64,
    errors: AtomicU64,
    late_peeks: Arc<Late>,
}

/// Nodes, and the places of those that get keys.
struct Cluster {
    setup: Setup,
    clock: Clock,
    counts: Arc<Counts>,
    callers: Mutex<Vec<Option<Group>>>,
    stop: AtomicBool,
}

impl Cluster {
    fn new(admission: fn() -> HotAdmission) -> Cluster {
        let counts = Arc::new(Counts::default());
        let wrap = counts.clone();
        let clock = match real_seconds() {
            None => Clock::manual(),
            Some(_) => Clock::system(),
        };
        let clocks = clock.clone();
        Cluster {
            clock,
            setup: Setup {
                group: Box::new(move |group| {
                    group.hot_admission(admission()).clock(clocks.clone())
                }),
                pool: Box::new(move |pool| {
                    let late_peeks = wrap.late_peeks.clone();
                    only_peeks_are_posts(pool).transport(move |_, inner| {
                        let late = late_peeks.clone();
                        Arc::new(LatePeeks { late, inner })
                    })
                }),
                ..Setup::default()
            },
            counts,
            callers: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    fn start(&self, listener: TcpListener, peers: &[String]) -> Node {
        let counts = self.counts.clone();
        self.setup.start_on(listener, peers, move |_, key, dest| {
            counts.loads.fetch_add(1, Ordering::Relaxed);
            Ok(dest.set_str(key)?)
        })
    }

    /// Lets the node at a place get keys from now on; none if `group` is `None`.
    fn call(&self, place: usize, group: Option<&Group>) {
        let mut callers = self.callers.lock().expect("no panic");
        if callers.len() <= place {
            callers.resize(place + 1, None);
        }
        callers[place] = group.cloned();
    }

    /// Gets all keys again and again, each time at another node.
    fn get_keys(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.counts.gets.fetch_add(1, Ordering::Relaxed);
            let (round, key) = (number / KEYS, format!("key {}", number * 7919 % KEYS));
            let group = {
                let callers = self.callers.lock().expect("no panic");
                let present: Vec<&Group> = callers.iter().flatten().collect();
                let place = (round + number * 31) as usize % present.len();
                present[place].clone()
            };
            if !group.get(&key).is_ok_and(|value| value == key.as_str()) {
                self.counts.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Lets a node load keys until it stops asking the previous owners for them, as it does after its start.
    fn end_first_handoff(&self, node: &Node) {
        wait_for_handoff(node);
        for n in 0.. {
            if !is_taking_over(node) {
                break;
            }
            let key = format!("first {n}");
            let loaded = node.group.serve_peer(&Context::background(), &key);
            loaded.expect("a value");
        }
        self.counts.loads.store(0, Ordering::Relaxed);
    }

    /// Lets enough time pass that no node still keeps a value in the place of its owner.
    fn pause(&self) {
        match real_seconds() {
            None => self.clock.advance(Duration::from_secs(11)),
            Some(seconds) => thread::sleep(seconds),
        }
    }

    /// Waits until each key was asked for [`ROUNDS`] more times.
    fn wait_for_load(&self) {
        let end = self.counts.gets.load(Ordering::Relaxed) + ROUNDS * KEYS;
        let start = Instant::now();
        while self.counts.gets.load(Ordering::Relaxed) < end {
            assert!(start.elapsed() < 2 * PATIENCE, "the gets hang");
            thread::sleep(millis(5));
        }
    }

    /// Runs `during` while threads get keys. Returns the loads during it, and the peeks that were late.
    fn under_load(&self, during: impl FnOnce()) -> (u64, u64) {
        let (mut loads, mut late) = (0, 0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| self.get_keys());
            }
            self.wait_for_load();
            let count = || {
                let counts = [&self.counts.loads, &self.counts.late_peeks.count];
                counts.map(|count| count.load(Ordering::Relaxed))
            };
            let before = count();
            assert_eq!(before[0], KEYS, "each key is loaded once");
            during();
            let after = count();
            (loads, late) = (after[0] - before[0], after[1] - before[1]);
            self.stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(self.counts.errors.load(Ordering::Relaxed), 0);
        (loads, late)
    }
}

/// The seconds of each pause, if the environment variable is set. The clock is then that of the system.
fn real_seconds() -> Option<Duration> {
    let seconds = std::env::var("LARDER_FAULTS_PAUSE_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number")))
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

/// Listens on a port that was free a moment ago. Another program may have it for a short time.
fn listen_again(addr: std::net::SocketAddr) -> TcpListener {
    let start = Instant::now();
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        thread::sleep(millis(5));
    }
}

fn url_of(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn is_taking_over(node: &Node) -> bool {
    format!("{:?}", node.pool).contains("handoff: true")
}

/// Waits until a node that has just started has the list of the peers that had its keys.
fn wait_for_handoff(node: &Node) {
    eventually("it has the list", || is_taking_over(node));
}

fn sees(node: &Node, url: &str, state: PeerState) -> bool {
    let mut peers = node.pool.peers().into_iter();
    peers.any(|peer| peer.peer.url == url && peer.state == state)
}

/// Restarts the nodes of a cluster of five, one by one, each with a drain or without notice. Returns the loads
/// meanwhile, and the peeks that were late.
fn restart_one_by_one(cluster: &Cluster, is_drained: bool) -> (u64, u64) {
    let listeners = [(); 5].map(|()| listen());
    let urls = listeners.each_ref().map(url_of);
    let mut nodes: Vec<Node> = listeners
        .into_iter()
        .map(|listener| cluster.start(listener, &urls))
        .collect();
    for (place, node) in nodes.iter().enumerate() {
        cluster.call(place, Some(&node.group));
    }
    let (loads, late) = cluster.under_load(|| {
        for place in 0..nodes.len() {
            let leaving = nodes.remove(place);
            cluster.call(place, None);
            if is_drained {
                leaving.pool.leave(Duration::ZERO);
                for node in &nodes {
                    assert!(sees(node, &leaving.url, PeerState::Absent));
                }
                cluster.wait_for_load();
            }
            let addr = leaving.addr();
            leaving
                .server
                .shutdown(PATIENCE)
                .expect("no request is cut");
            drop(leaving);
            if !is_drained {
                cluster.wait_for_load();
            }
            let back = cluster.start(listen_again(addr), &urls);
            cluster.call(place, Some(&back.group));
            let start = Instant::now();
            while !nodes
                .iter()
                .all(|node| sees(node, &back.url, PeerState::Healthy))
            {
                assert!(start.elapsed() < PATIENCE, "it is not back");
                thread::sleep(millis(5));
            }
            nodes.insert(place, back);
            cluster.wait_for_load();
            cluster.pause();
            cluster.wait_for_load();
        }
    });
    println!("{loads} of {KEYS} keys are loaded again, {late} peeks were late");
    (loads, late)
}

#[track_caller]
fn assert_few_are_loaded_again(admission: fn() -> HotAdmission) {
    let (loads, late) = restart_one_by_one(&Cluster::new(admission), true);
    assert!(
        loads <= KEYS * 2 / 100 + late,
        "{loads} loads, {late} late peeks"
    );
}

#[test]
fn drained_restarts_one_by_one_load_few_keys_again() {
    assert_few_are_loaded_again(|| HotAdmission::Always);
}

#[test]
fn drained_restarts_one_by_one_load_few_keys_again_without_copies() {
    assert_few_are_loaded_again(|| HotAdmission::Never);
}

#[test]
fn restarts_without_notice_load_what_was_lost_about_once() {
    let cluster = Cluster::new(|| HotAdmission::Never);
    let (loads, late) = restart_one_by_one(&cluster, false);
    // Each key has one owner, so each was lost once.
    assert!(
        loads <= KEYS * 110 / 100 + late,
        "{loads} loads, {late} late peeks"
    );
}

#[test]
fn list_that_flaps_costs_no_error_and_few_loads() {
    let cluster = Cluster::new(|| HotAdmission::Never);
    let listeners = [(); 3].map(|()| listen());
    let urls = listeners.each_ref().map(url_of);
    let nodes = listeners.map(|listener| cluster.start(listener, &urls));
    for (place, node) in nodes.iter().enumerate() {
        cluster.call(place, Some(&node.group));
        cluster.end_first_handoff(node);
    }
    let (loads, late) = cluster.under_load(|| {
        for flap in 0..100 {
            let list = if flap % 2 == 0 { &urls[..2] } else { &urls[..] };
            for node in &nodes[..2] {
                node.pool.set(list).expect("good URLs");
            }
            let gets = || cluster.counts.gets.load(Ordering::Relaxed);
            let end = gets() + KEYS / 4;
            let begun = Instant::now();
            while gets() < end {
                assert!(begun.elapsed() < 3 * PATIENCE, "the callers make no calls");
                thread::sleep(millis(1));
            }
        }
    });
    println!("{loads} of {KEYS} keys are loaded again, {late} peeks were late");
    assert!(
        loads <= KEYS * 5 / 100 + late,
        "{loads} loads, {late} late peeks"
    );
}

/// The part of the keys that a pool moves when three nodes become ten. Checks that all moved keys are owned by
/// new nodes, and that they come back.
fn moved_share(preset: Option<Preset>) -> f64 {
    let keys: Vec<String> = (0..100_000).map(|n| format!("key {n}")).collect();
    let urls: Vec<String> = (1..=10)
        .map(|n| format!("http://10.0.0.{n}:8000"))
        .collect();
    let builder = HttpPool::builder(&urls[0]).registry(&Registry::new());
    let builder = match preset {
        None => builder,
        Some(preset) => builder.preset(preset),
    };
    let pool = builder.build().expect("a pool");
    let mut owners = |nodes: usize| -> Vec<String> {
        pool.set(&urls[..nodes]).expect("good URLs");
        let owners = keys.iter().map(|key| pool.owner(key));
        owners.map(|owner| owner.expect("an owner")).collect()
    };
    let [before, among_ten, after] = [3, 10, 3].map(&mut owners);
    assert_eq!(before, after, "all come back");
    let moved = before.iter().zip(&among_ten).filter(|(a, b)| a != b);
    let to: Vec<&String> = moved.map(|(_, to)| to).collect();
    assert!(
        to.iter().all(|to| urls[3..].contains(to)),
        "only to new nodes"
    );
    to.len() as f64 / keys.len() as f64
}

#[test]
fn nodes_that_join_and_leave_move_their_share_of_the_keys_and_no_other() {
    let share = moved_share(None);
    // The ideal share is seven of ten. The tolerance is 2 points.
    assert!((0.68..=0.72).contains(&share), "{share}");
    // The arcs of a ring differ more in their lengths.
    for preset in [
        Preset::Larder,
        Preset::Golang,
        Preset::Mailgun,
        Preset::GroupcacheGo,
    ] {
        let share = moved_share(Some(preset));
        assert!((0.66..=0.74).contains(&share), "{preset:?}: {share}");
    }
}

#[test]
fn three_nodes_that_become_ten_and_three_again_load_few_moved_keys() {
    let cluster = Cluster::new(|| HotAdmission::Never);
    let listeners: Vec<TcpListener> = (0..10).map(|_| listen()).collect();
    let urls: Vec<String> = listeners.iter().map(url_of).collect();
    let mut listeners = listeners.into_iter();
    let first = listeners.by_ref().take(3);
    let nodes: Vec<Node> = first
        .map(|listener| cluster.start(listener, &urls[..3]))
        .collect();
    for (place, node) in nodes.iter().enumerate() {
        cluster.call(place, Some(&node.group));
    }
    let owners = |node: &Node| -> Vec<Option<String>> {
        let keys = (0..KEYS).map(|key| format!("key {key}"));
        keys.map(|key| node.pool.owner(&key)).collect()
    };
    let mut moved = 0;
    let (loads, late) = cluster.under_load(|| {
        let before = owners(&nodes[0]);
        let new: Vec<Node> = listeners
            .map(|listener| cluster.start(listener, &urls))
            .collect();
        new.iter().for_each(wait_for_handoff);
        for node in &nodes {
            node.pool.set(&urls).expect("good URLs");
        }
        for (place, node) in new.iter().enumerate() {
            cluster.call(3 + place, Some(&node.group));
        }
        let after = owners(&nodes[0]);
        moved = before.iter().zip(&after).filter(|(a, b)| a != b).count() as u64;
        cluster.wait_for_load();
        for (place, node) in new.iter().enumerate() {
            cluster.call(3 + place, None);
            node.pool.leave(Duration::ZERO);
        }
        cluster.wait_for_load();
        for node in &nodes {
            node.pool.set(&urls[..3]).expect("good URLs");
        }
        cluster.wait_for_load();
        for node in new {
            node.server.shutdown(PATIENCE).expect("no request is cut");
        }
        cluster.wait_for_load();
    });
    println!("{moved} of {KEYS} keys moved and came back, {loads} loads, {late} peeks were late");
    // Each of them moved twice.
    assert!(
        loads <= 2 * moved * 5 / 100 + late,
        "{loads} loads, {moved} moved, {late} late peeks"
    );
}
