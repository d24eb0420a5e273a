//! Peers that are killed, stopped or away for good, and the processes that ask them.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder::http::{PeerState, Transport, TransportRequest, TransportResponse};
use larder::{Clock, Context, Error, ErrorKind};

use crate::cluster::{Node, Setup, see_requests};
use crate::common::{PATIENCE, eventually, millis, seconds, timed};
use crate::late_peeks::{Late, LatePeeks, only_peeks_are_posts};
use crate::process::{Process, figure};
use crate::raw_server::RawServer;

/// Processes that know each other.
fn cluster<const N: usize>(options: &str) -> [Process; N] {
    let mut nodes = [(); N].map(|()| Process::start(options));
    connect(&mut nodes);
    nodes
}

fn connect(nodes: &mut [Process]) {
    let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
    let line = format!("peers {}", urls.join(" "));
    for node in nodes {
        assert_eq!(node.ask(&line), "ready");
    }
}

#[test]
fn killed_peer_costs_each_thread_one_exchange_and_is_asked_again_after_its_restart() {
    const THREADS: u64 = 8;
    // A slow machine makes no exchange with a node that lives fail. Gets are sent one by one, which tells them
    // from the peeks that a node makes for callers of another one, if that one has found the owner dead first.
    const TIMES: &str = "exchange_ms=20000 connect_ms=20000 single_gets=1";
    let mut nodes = cluster::<3>(TIMES);
    for node in &mut nodes[..2] {
        let load = format!("load threads={THREADS} pause_us=200 prefix={}", node.url);
        assert_eq!(node.ask(&load), "started");
    }
    thread::sleep(millis(500));
    let (dead, options) = (nodes[2].url.clone(), nodes[2].same_port());
    nodes[2].kill();
    // The first window is 1 s, the second one 2 s.
    thread::sleep(millis(2000));
    let status = nodes[0].ask(&format!("peer {dead}"));
    assert!(
        status.contains("Down") && status.contains("refused"),
        "{status}"
    );
    nodes[2] = Process::start(&format!("{TIMES} {options}"));
    let back = Instant::now();
    connect(&mut nodes[2..]);
    while nodes[2].number::<u64>("served") == 0 {
        let took = back.elapsed();
        assert!(took < seconds(4), "not asked again after {took:?}");
        thread::sleep(millis(10));
    }
    for node in &mut nodes[..2] {
        let figures = node.ask("end");
        assert_eq!(figure(&figures, "errors"), 0, "{figures}");
        assert_eq!(figure(&figures, "wrong"), 0, "{figures}");
        let failed: u64 = node.number("failed-gets");
        assert!((1..=THREADS).contains(&failed), "{failed} failed gets");
    }
}

/// The link of one node. Its requests fail while it is cut. The next peek fails if it is loose.
struct Cable {
    is_cut: Arc<AtomicBool>,
    is_loose: Arc<AtomicBool>,
    inner: LatePeeks,
}

impl Transport for Cable {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> larder::Result<TransportResponse> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Peer, "the cable is cut"));
        }
        if request.method() == "POST" && self.is_loose.swap(false, Ordering::SeqCst) {
            self.inner.late.note(true);
            return Err(Error::new(ErrorKind::Peer, "the cable is loose"));
        }
        self.inner.round_trip(ctx, request)
    }
}

/// Three nodes, the first of which is cut off from the others on demand. A node counts its loads.
fn nodes_with_a_cable(
    is_cut: &Arc<AtomicBool>,
    is_loose: &Arc<AtomicBool>,
    late_peeks: &Arc<Late>,
    loads: &Arc<AtomicUsize>,
) -> [Node; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let urls = listeners.each_ref().map(|listener| {
        let addr = listener.local_addr().expect("an address");
        format!("http://{addr}")
    });
    let mut places = 0..3;
    listeners.map(|listener| {
        let is_first = places.next() == Some(0);
        let (first, is_cut, late_peeks) = (urls[0].clone(), is_cut.clone(), late_peeks.clone());
        let is_loose = is_loose.clone();
        let setup = Setup {
            pool: Box::new(move |pool| {
                let (first, is_cut, late_peeks) =
                    (first.clone(), is_cut.clone(), late_peeks.clone());
                let is_loose = is_loose.clone();
                let pool = pool.absent_after(millis(200));
                only_peeks_are_posts(pool).transport(move |url, inner| {
                    let late = late_peeks.clone();
                    match is_first || url == first {
                        false => inner,
                        true => Arc::new(Cable {
                            is_cut: is_cut.clone(),
                            is_loose: is_loose.clone(),
                            inner: LatePeeks { late, inner },
                        }),
                    }
                })
            }),
            ..Setup::default()
        };
        let loads = loads.clone();
        setup.start_on(listener, &urls, move |_, key, dest| {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok(dest.set_str(key)?)
        })
    })
}

#[test]
fn node_that_was_only_cut_off_takes_the_values_of_its_keys_over() {
    const KEYS: usize = 200;
    let is_cut = Arc::new(AtomicBool::new(false));
    let (late_peeks, loads) = (Arc::new(Late::default()), Arc::new(AtomicUsize::new(0)));
    let is_loose = Arc::new(AtomicBool::new(false));
    let nodes = nodes_with_a_cable(&is_cut, &is_loose, &late_peeks, &loads);
    let (cut, others) = (&nodes[0], &nodes[1..]);
    let some_keys_of = |owner: &Node, prefix: &str, count: usize| -> Vec<String> {
        let keys = (0..).map(|n| format!("{prefix} {n}"));
        let owned = keys.filter(|key| cut.pool.owner(key).as_deref() == Some(&*owner.url));
        owned.take(count).collect()
    };
    let keys_of = |owner: &Node, prefix: &str| some_keys_of(owner, prefix, KEYS);
    let get = |node: &Node, keys: &[String]| {
        for key in keys {
            assert_eq!(node.group.get(key).expect("a value"), key.as_str());
        }
    };
    // The node has just started. It stops asking the others for values after some answers without a value.
    get(cut, &some_keys_of(cut, "cold", 1000));
    // All notice it, the one that is cut off as well.
    is_cut.store(true, Ordering::SeqCst);
    for (n, node) in others.iter().enumerate() {
        get(node, &keys_of(cut, &format!("notice{n}"))[..9]);
        get(cut, &keys_of(node, &format!("notice{n}"))[..9]);
    }
    eventually("absent", || all_see(others, &cut.url, PeerState::Absent));
    loads.store(0, Ordering::SeqCst);
    let keys = keys_of(cut, "key");
    for node in others {
        get(node, &keys);
    }
    assert_eq!(loads.swap(0, Ordering::SeqCst), KEYS, "the next nodes load");

    is_loose.store(true, Ordering::SeqCst);
    is_cut.store(false, Ordering::SeqCst);
    late_peeks.reset();
    eventually("it is back", || {
        all_see(others, &cut.url, PeerState::Healthy)
    });
    for other in others {
        eventually("the others are", || {
            all_see(&nodes[..1], &other.url, PeerState::Healthy)
        });
    }
    get(cut, &keys);
    let (loads, late) = (
        loads.load(Ordering::SeqCst),
        late_peeks.count.load(Ordering::SeqCst) as usize,
    );
    let in_a_row = late_peeks.most_in_a_row();
    // This measures the same exchanges without their deadline of 10 ms.
    let slowest = slowest_get(cut, &keys_of(&others[0], "control"));
    // After four in a row, a node that came back loads the other keys itself.
    let gave_up = in_a_row >= 4 && slowest > millis(7);
    println!("{loads} loads, {late} late peeks, {in_a_row} in a row, {slowest:?} the slowest get");
    assert!(gave_up || loads <= KEYS * 5 / 100 + late);
}

/// Whether all of these nodes see the peer in this state.
fn all_see(nodes: &[Node], url: &str, state: PeerState) -> bool {
    nodes.iter().all(|node| {
        let mut peers = node.pool.peers().into_iter();
        peers.any(|peer| peer.peer.url == url && peer.state == state)
    })
}

fn slowest_get(node: &Node, keys: &[String]) -> Duration {
    let times = keys.iter().map(|key| timed(|| node.group.get(key)));
    let times = times.map(|(took, result)| result.map(|_| took).expect("a value"));
    times.max().expect("keys")
}

#[test]
fn absent_owner_leaves_its_keys_to_the_next_node_for_their_full_life() {
    let clock = Clock::manual();
    let loads = Arc::new(AtomicUsize::new(0));
    let (ours, counted) = (clock.clone(), loads.clone());
    let setup = Setup {
        group: Box::new(move |group| group.clock(ours.clone())),
        pool: Box::new(|pool| pool.absent_after(millis(500))),
        ..Setup::default()
    };
    let nodes = [(); 2].map(|()| {
        let counted = counted.clone();
        setup.start(move |_, key, dest| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(dest.set_str(key)?)
        })
    });
    let dead = RawServer::start(drop);
    let urls = [&dead.url, &nodes[0].url, &nodes[1].url];
    for node in &nodes {
        node.pool.set(urls).expect("URLs");
    }
    let get_at_both = |key: &str| {
        for node in &nodes {
            assert_eq!(node.group.get(key).expect("a value"), key);
        }
        loads.swap(0, Ordering::SeqCst)
    };
    // Both nodes notice that the owner is down, each by a key that the other has not loaded for it.
    for (n, node) in nodes.iter().enumerate() {
        let key = node.key_of(&dead.url, &format!("first{n}"));
        assert_eq!(node.group.get(&key).expect("a value"), key.as_str());
    }
    loads.store(0, Ordering::SeqCst);
    // A value in the owner's place is kept for 10 s.
    let key = nodes[0].key_of(&dead.url, "down");
    assert!((1..=2).contains(&get_at_both(&key)));
    clock.advance(seconds(11));
    assert_eq!(get_at_both(&key), 1, "one node loads for both");

    let is_absent = |node: &Node| node.pool.peers()[0].state == PeerState::Absent;
    eventually("absent", || nodes.iter().all(is_absent));
    let key = nodes[0].key_of(&dead.url, "absent");
    assert_eq!(get_at_both(&key), 1);
    clock.advance(seconds(3600));
    assert_eq!(get_at_both(&key), 0, "it is kept");
}

#[test]
fn peer_that_is_down_gets_one_probe_a_window() {
    let [probes, gets] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let (counted_probes, counted_gets) = (probes.clone(), gets.clone());
    let dead = RawServer::start(move |mut connection| {
        let head = connection.read_head().unwrap_or_default();
        if head.starts_with("GET /_groupcache/ ") {
            counted_probes.fetch_add(1, Ordering::SeqCst);
        } else if head.contains("/key") || head.starts_with("POST") {
            counted_gets.fetch_add(1, Ordering::SeqCst);
        }
    });
    let others = [(); 2].map(|()| Setup::default().start(|_, _, dest| Ok(dest.set_str("value")?)));
    let by_callers = Arc::new(AtomicUsize::new(0));
    let watched = Setup {
        pool: Box::new({
            let by_callers = by_callers.clone();
            move |pool| {
                let by_callers = by_callers.clone();
                see_requests(pool, move |_, request| {
                    let is_probe = request.path() == "/_groupcache/";
                    if is_probe && thread::current().name() != Some("larder-probe") {
                        by_callers.fetch_add(1, Ordering::SeqCst);
                    }
                })
            }
        }),
        ..Setup::default()
    };
    let node = watched.start(|_, _, dest| Ok(dest.set_str("value")?));
    let urls = [&dead.url, &others[0].url, &others[1].url, &node.url];
    node.pool.set(urls).expect("URLs");
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < millis(3200) || probes.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < PATIENCE, "no probe");
        let keys: Vec<String> = (number..number + 10).map(|n| format!("key{n}")).collect();
        number += 10;
        for key in &keys[..5] {
            assert_eq!(node.group.get(key).expect("a value"), "value");
        }
        let values = node.group.get_many(&Context::background(), &keys[5..]);
        assert!(values.iter().all(|value| value.is_ok()));
        thread::sleep(millis(1));
    }
    // The windows are 1 s, 2 s, 4 s and so on, and each may be shorter by up to a quarter.
    let (probes, took) = (probes.load(Ordering::SeqCst), start.elapsed());
    let windows = (1..).take_while(|&n| millis(750) * ((1 << n) - 1) <= took);
    let most = windows.count();
    assert!(probes <= most, "{probes} probes in {took:?}");
    assert_eq!(by_callers.load(Ordering::SeqCst), 0, "no caller waits");
    assert_eq!(gets.load(Ordering::SeqCst), 1);
    assert_eq!(node.group.stats().peer_errors, 1);
}
