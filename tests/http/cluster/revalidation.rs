//! Copies that are asked for again after their time, and have not changed.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use larder::http::{
    HttpClient, HttpPool, HttpPoolBuilder, Server, Transport, TransportRequest, TransportResponse,
};
use larder::{ByteView, Clock, Context, GetOptions, Group, Registry, Result, SetOptions, Value};

use super::PATIENCE;

/// Records the status of each response for a key, and the length of its body.
struct Noting(Arc<dyn Transport>, Arc<Mutex<Vec<(u16, u64)>>>);

impl Transport for Noting {
    fn round_trip(
        &self,
        ctx: &Context,
        request: TransportRequest<'_>,
    ) -> Result<TransportResponse> {
        let (method, path) = (request.method(), request.path());
        // Changes and exchanges of removals are not noted.
        let is_noted = match method {
            "GET" => path.contains("/pages/"),
            "POST" => path.ends_with("/pages"),
            _ => false,
        };
        let response = self.0.round_trip(ctx, request)?;
        if is_noted {
            let length = response.length().expect("a length");
            self.1.lock().unwrap().push((response.status(), length));
        }
        Ok(response)
    }
}

/// Two nodes with one clock, and an origin whose getter can be held.
struct Cluster {
    clock: Clock,
    groups: Vec<Group>,
    noted: Arc<Mutex<Vec<(u16, u64)>>>,
    version: Arc<AtomicUsize>,
    loads: Arc<AtomicUsize>,
    held: Arc<(Mutex<bool>, Condvar)>,
    /// Keys of the second node, and the first of them.
    keys: Vec<String>,
    key: String,
    _nodes: Vec<(HttpPool, Server)>,
}

fn value(version: usize) -> Vec<u8> {
    vec![version as u8; 100 << 10]
}

/// A group whose values have a version, and which loads while it is not held.
fn pages(
    registry: &Registry,
    clock: &Clock,
    version: &Arc<AtomicUsize>,
    loads: &Arc<AtomicUsize>,
    held: &Arc<(Mutex<bool>, Condvar)>,
) -> Group {
    let (version, loads, held) = (version.clone(), loads.clone(), held.clone());
    Group::builder("pages")
        .registry(registry)
        .clock(clock.clone())
        .time_to_live(Duration::from_secs(10))
        .time_to_live_jitter(0.0)
        .keep_for_revalidation(Duration::from_secs(60))
        .build_with(move |ctx, _| {
            let version = version.load(SeqCst);
            loads.fetch_add(1, SeqCst);
            let held_now = held.0.lock().unwrap();
            drop(held.1.wait_while(held_now, |held| *held).unwrap());
            let etag = version.to_string();
            if ctx.etag() == Some(&etag) {
                return Ok::<_, larder::Error>(Value::not_modified());
            }
            Ok(Value::new(value(version)).etag(etag))
        })
        .unwrap()
}

impl Cluster {
    fn start(client: HttpClient) -> Cluster {
        let clock = Clock::manual();
        let noted: Arc<Mutex<Vec<(u16, u64)>>> = Arc::default();
        let (version, loads) = (Arc::default(), Arc::default());
        let held: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let (mut groups, mut nodes) = (Vec::new(), Vec::new());
        for place in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let registry = Registry::new();
            // The second node asks the first one for what it may have from before.
            let notes = if place == 0 {
                noted.clone()
            } else {
                Arc::default()
            };
            let wrap = move |_: &str, inner| -> Arc<dyn Transport> {
                Arc::new(Noting(inner, notes.clone()))
            };
            let builder: HttpPoolBuilder = HttpPool::builder(&url).registry(&registry);
            // A slow machine makes no exchange fail, and no owner answers that it is still loading.
            let builder = builder.connect_timeout(PATIENCE).exchange_timeout(PATIENCE);
            let pool = builder.http_client(client).transport(wrap).build().unwrap();
            groups.push(pages(&registry, &clock, &version, &loads, &held));
            let server = pool.server().serve_listener(listener).unwrap();
            nodes.push((pool, server));
        }
        let urls: Vec<_> = nodes.iter().map(|(pool, _)| pool.self_url()).collect();
        nodes.iter().for_each(|(pool, _)| pool.set(&urls).unwrap());
        let is_theirs = |key: &String| nodes[0].0.owner(key).as_deref() == Some(&*urls[1]);
        let pages = (0..).map(|n| format!("page-{n}"));
        let keys: Vec<String> = pages.filter(is_theirs).take(3).collect();
        let key = keys[0].clone();
        Cluster {
            clock,
            groups,
            noted,
            version,
            loads,
            held,
            keys,
            key,
            _nodes: nodes,
        }
    }

    /// The value at the node that does not own the key, and the exchanges that it cost.
    fn get(&self) -> (ByteView, Vec<(u16, u64)>) {
        self.noted.lock().unwrap().clear();
        let value = self.groups[0].get(&self.key).unwrap();
        (value, std::mem::take(&mut self.noted.lock().unwrap()))
    }

    /// The same for all keys, by one call.
    fn get_many(&self) -> (Vec<ByteView>, Vec<(u16, u64)>) {
        self.noted.lock().unwrap().clear();
        let values = self.groups[0].get_many(&Context::background(), &self.keys);
        let values = values.into_iter().map(|value| value.unwrap());
        (
            values.collect(),
            std::mem::take(&mut self.noted.lock().unwrap()),
        )
    }

    fn hold(&self, held: bool) {
        *self.held.0.lock().unwrap() = held;
        self.held.1.notify_all();
    }

    /// Lets the copies expire, and changes data while a get asks for them again. Returns the get's value of the
    /// first key. `many` is whether it is a get of all keys.
    fn change_meanwhile(&self, many: bool, change: impl FnOnce(&Cluster)) -> ByteView {
        self.get_many();
        self.clock.advance(Duration::from_secs(10));
        self.hold(true);
        let loads = self.loads.load(SeqCst) + if many { self.keys.len() } else { 1 };
        let value = std::thread::scope(|scope| {
            let asking = scope.spawn(|| match many {
                false => self.groups[0].get(&self.key).unwrap(),
                true => {
                    let values = self.groups[0].get_many(&Context::background(), &self.keys);
                    values.into_iter().next().unwrap().unwrap()
                }
            });
            // If this thread panics, the scope waits for the other one.
            let released = Released(self);
            // All loads have read the version before it changes.
            let begun = Instant::now();
            while self.loads.load(SeqCst) < loads {
                assert!(begun.elapsed() < PATIENCE, "a load does not begin");
                std::thread::yield_now();
            }
            change(self);
            drop(released);
            asking.join().unwrap()
        });
        let notes = self.noted.lock().unwrap();
        let is_unchanged = |&(status, length): &(u16, u64)| match many {
            false => (status, length) == (304, 0),
            true => status == 200 && length < 1000,
        };
        assert!(
            notes.iter().any(is_unchanged),
            "an answer is unchanged: {notes:?}"
        );
        value
    }
}

/// Lets the getters of a cluster go on when it is dropped.
struct Released<'a>(&'a Cluster);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.hold(false);
    }
}

const CLIENTS: &[HttpClient] = &[
    HttpClient::Auto,
    HttpClient::Direct,
    #[cfg(feature = "ureq")]
    HttpClient::Ureq,
];

#[test]
fn unchanged_copy_is_renewed_without_a_body() {
    for &client in CLIENTS {
        let cluster = Cluster::start(client);
        let answer = || {
            let options = GetOptions::new().only_if_cached();
            let ctx = Context::background();
            let answer = cluster.groups[0]
                .get_opts(&ctx, &cluster.key, options)
                .unwrap();
            (
                answer.age.unwrap().as_secs(),
                answer.expires_in.unwrap().as_secs(),
            )
        };
        let (first, exchanges) = cluster.get();
        assert_eq!(first, value(0));
        assert!(
            exchanges.len() == 1 && exchanges[0].0 == 200,
            "{exchanges:?}"
        );
        for loads in 2..5 {
            cluster.clock.advance(Duration::from_secs(4));
            assert_eq!((cluster.get().1, answer()), (vec![], (4, 6)));
            cluster.clock.advance(Duration::from_secs(6));
            let (renewed, exchanges) = cluster.get();
            assert_eq!(renewed.as_ptr(), first.as_ptr(), "no byte is copied");
            assert_eq!(exchanges, [(304, 0)]);
            assert_eq!(cluster.loads.load(SeqCst), loads);
            assert_eq!(answer(), (0, 10));
        }
        cluster.clock.advance(Duration::from_secs(10));
        cluster.version.store(1, SeqCst);
        let (changed, exchanges) = cluster.get();
        assert_eq!(changed, value(1));
        assert!(
            exchanges.len() == 1 && exchanges[0].1 > 100 << 10,
            "{exchanges:?}"
        );
    }
}

#[test]
fn age_of_a_renewed_copy_is_that_of_the_owner() {
    let cluster = Cluster::start(HttpClient::Auto);
    cluster.get();
    cluster.clock.advance(Duration::from_secs(10));
    cluster.groups[1].get(&cluster.key).unwrap();
    cluster.clock.advance(Duration::from_secs(3));
    assert_eq!(cluster.get().1, [(304, 0)]);
    let ctx = Context::background();
    let answer = cluster.groups[0]
        .get_opts(&ctx, &cluster.key, GetOptions::new())
        .unwrap();
    assert_eq!(answer.age, Some(Duration::from_secs(3)));
    assert_eq!(answer.expires_in, Some(Duration::from_secs(7)));
}

#[test]
fn unchanged_copies_of_several_keys_are_renewed_together() {
    for &client in CLIENTS {
        let cluster = Cluster::start(client);
        let (first, exchanges) = cluster.get_many();
        assert!(first.iter().all(|page| *page == value(0)));
        assert!(
            exchanges.len() == 1 && exchanges[0].1 > 300 << 10,
            "{exchanges:?}"
        );
        cluster.clock.advance(Duration::from_secs(10));
        for round in 2..4 {
            let (renewed, exchanges) = cluster.get_many();
            for (renewed, first) in renewed.iter().zip(&first) {
                assert_eq!(renewed.as_ptr(), first.as_ptr(), "no byte is copied");
            }
            assert!(
                exchanges.len() == 1 && exchanges[0].1 < 200,
                "{exchanges:?}"
            );
            assert_eq!(cluster.loads.load(SeqCst), 3 * round);
            cluster.clock.advance(Duration::from_secs(9));
            assert_eq!(cluster.get_many().1, [], "their life is extended");
            cluster.clock.advance(Duration::from_secs(1));
        }
        // Two values are renewed at the owner before the first one changes.
        for key in &cluster.keys[1..] {
            cluster.groups[1].get(key).unwrap();
        }
        cluster.version.store(1, SeqCst);
        let (values, exchanges) = cluster.get_many();
        assert_eq!(values, [value(1), value(0), value(0)].map(ByteView::from));
        assert_eq!(values[1].as_ptr(), first[1].as_ptr());
        assert!(
            exchanges.len() == 1 && (100..101).contains(&(exchanges[0].1 >> 10)),
            "{exchanges:?}"
        );
    }
}

#[test]
fn removal_meanwhile_keeps_a_copy_from_being_renewed() {
    for many in [false, true] {
        let cluster = Cluster::start(HttpClient::Auto);
        let remove = |cluster: &Cluster| cluster.groups[0].invalidate(&cluster.key);
        let old = cluster.change_meanwhile(many, remove);
        assert_eq!(old, value(0));
        assert!(!cluster.groups[0].contains_key(&cluster.key));
    }
}

#[test]
fn removal_in_the_cluster_fences_an_unchanged_answer() {
    for many in [false, true] {
        let cluster = Cluster::start(HttpClient::Auto);
        let asked = cluster.change_meanwhile(many, |cluster| {
            cluster.version.store(1, SeqCst);
            let removed = cluster.groups[0].remove(&Context::background(), &cluster.key);
            removed.expect("both nodes drop it");
        });
        assert_eq!(asked, value(1), "it is asked for again");
        assert_eq!(cluster.groups[0].get(&cluster.key).unwrap(), value(1));
        assert_eq!(cluster.groups[1].get(&cluster.key).unwrap(), value(1));
    }
}

#[test]
fn value_that_is_set_meanwhile_is_not_replaced_by_an_unchanged_one() {
    for many in [false, true] {
        let cluster = Cluster::start(HttpClient::Auto);
        let asked = cluster.change_meanwhile(many, |cluster| {
            let (ctx, group) = (Context::background(), &cluster.groups[0]);
            let set = group.set(&ctx, &cluster.key, value(9), SetOptions::new());
            set.expect("the owner keeps it");
        });
        assert_eq!(asked, value(9), "it is asked for again");
        assert_eq!(cluster.groups[0].get(&cluster.key).unwrap(), value(9));
        assert_eq!(cluster.groups[1].get(&cluster.key).unwrap(), value(9));
    }
}
