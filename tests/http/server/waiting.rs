//! How long a request waits for a load: its client leaves, its time ends, or the getter hangs.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use larder::http::{HttpPool, Server, ServerBuilder};
use larder::{Clock, Context, ErrorKind, Group, GroupBuilder, Registry, SetOptions, Sink};

use super::support::{Client, Reply, ask, eventually, get};

/// A server whose getter hangs for keys that begin with `hang`, until it is released.
struct Hanging {
    server: Server,
    group: Group,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_open: bool,
    /// The runs of the getter for each key.
    runs: HashMap<String, usize>,
    /// The names of the threads that ran it.
    threads: Vec<String>,
}

impl Hanging {
    fn new(server: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        Hanging::with_group(|group| group, server)
    }

    fn with_group(
        group: impl FnOnce(GroupBuilder) -> GroupBuilder,
        server: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let registry = Registry::new();
        let gate = Arc::new(Gate::default());
        let getter = {
            let gate = gate.clone();
            move |_: &Context, key: &str, dest: &mut dyn Sink| {
                gate.pass(key);
                Ok(dest.set_str(key)?)
            }
        };
        let group = group(Group::builder("echo").registry(&registry))
            .build(getter)
            .expect("a group");
        let pool = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
        let pool = pool.build().expect("a pool");
        let server = server(pool.server()).bind("127.0.0.1:0").expect("a server");
        Hanging {
            server,
            group,
            gate,
        }
    }

    fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        ask(self.server.local_addr(), request)
    }

    fn connect(&self) -> Client {
        Client::connect(self.server.local_addr())
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.gate.open();
    }
}

impl Gate {
    fn pass(&self, key: &str) {
        let mut state = self.state.lock().expect("no panic");
        *state.runs.entry(key.to_owned()).or_default() += 1;
        let thread = std::thread::current();
        state.threads.push(thread.name().unwrap_or("").to_owned());
        while key.starts_with("hang") && !state.is_open {
            state = self.changed.wait(state).expect("no panic");
        }
    }

    fn open(&self) {
        self.state.lock().expect("no panic").is_open = true;
        self.changed.notify_all();
    }

    fn runs(&self, key: &str) -> usize {
        let state = self.state.lock().expect("no panic");
        state.runs.get(key).copied().unwrap_or(0)
    }
}

/// A request with a time-out in milliseconds.
fn get_within(key: &str, timeout: &str) -> String {
    get(key).replace(
        "Host: h",
        &format!("Host: h\r\nlarder-timeout-ms: {timeout}"),
    )
}

const SHORT: Duration = Duration::from_millis(150);

/// Longer than a wait of [`SHORT`] takes on a busy machine, and shorter than any default.
const SOON: Duration = Duration::from_secs(4);

/// `tests/faults` checks the time limits of this fault.
#[test]
fn clients_that_left_a_hanging_getter_hold_no_connection() {
    const CLIENTS: usize = 300;
    let tested = Hanging::new(|server| server);
    for _ in 0..CLIENTS {
        drop(Client::sending(tested.server.local_addr(), get("hang")));
    }
    // The other clients are served, also while the connections are still open.
    for n in 0..20 {
        assert_eq!(tested.ask(get(&format!("{n}"))).value(), n.to_string());
    }
    // The getter still hangs.
    eventually(|| tested.server.connections() == 0);
    assert_eq!(tested.gate.runs("hang"), 1);
}

#[test]
fn getter_runs_on_a_loader_thread_also_without_a_deadline() {
    let tested = Hanging::new(|server| server);
    assert_eq!(tested.ask(get("key")).value(), "key");
    let state = tested.gate.state.lock().expect("no panic");
    assert_eq!(state.threads, ["larder-load"]);
}

#[test]
fn request_without_a_deadline_ends_at_max_request_time() {
    let tested = Hanging::new(|server| server.max_request_time(SHORT));
    let started = Instant::now();
    let mut client = tested.connect();
    client.send(get("hang"));
    let reply = client.reply();
    let took = started.elapsed();
    assert_eq!(
        (reply.status, reply.header("larder-error")),
        (504, Some("deadline"))
    );
    assert!((SHORT..SOON).contains(&took), "{took:?}");
    // The connection stays open, and the load goes on.
    client.send(get("other"));
    assert_eq!(client.reply().value(), "other");
    client.send(get("hang"));
    tested.gate.open();
    assert_eq!(client.reply().value(), "hang");
    assert_eq!(tested.gate.runs("hang"), 1);
}

#[test]
fn long_timeout_of_a_request_is_shortened_to_max_request_time() {
    let tested = Hanging::new(|server| server.max_request_time(SHORT));
    for timeout in ["3000", "99999999999", "9999999999999999999"] {
        let started = Instant::now();
        let reply = tested.ask(get_within("hang", timeout));
        assert_eq!(
            (reply.status, reply.header("larder-error")),
            (503, Some("loading"))
        );
        assert!(started.elapsed() < SOON, "{timeout}");
    }
}

#[test]
fn owner_answers_that_it_is_loading_before_the_time_is_over() {
    let tested = Hanging::new(|server| server);
    let mut client = tested.connect();
    let started = Instant::now();
    client.send(get_within("hang", "400"));
    let reply = client.reply();
    let took = started.elapsed();
    assert_eq!(
        (reply.status, reply.header("larder-error")),
        (503, Some("loading"))
    );
    assert!(took >= Duration::from_millis(350), "{took:?}");
    client.send(get_within("hang", "9000"));
    tested.gate.open();
    assert_eq!(client.reply().value(), "hang");
    assert_eq!(tested.gate.runs("hang"), 1);
}

/// A peer asks again after an exchange. A getter that stops once its context has ended has to go on until
/// then.
#[test]
fn time_of_an_exchange_does_not_end_the_load() {
    let (registry, left) = (Registry::new(), Arc::new(Mutex::new(Vec::new())));
    let noted = left.clone();
    let getter = move |ctx: &Context, key: &str, dest: &mut dyn Sink| {
        noted.lock().expect("no panic").push(ctx.remaining());
        Ok(dest.set_str(key)?)
    };
    let group = Group::builder("echo").registry(&registry);
    group.build(getter).expect("a group");
    let pool = HttpPool::builder("http://127.0.0.1:1").registry(&registry);
    let pool = pool.build().expect("a pool");
    let server = pool.server().max_request_time(Duration::from_secs(3600));
    let server = server.bind("127.0.0.1:0").expect("a server");
    let addr = server.local_addr();
    assert_eq!(ask(addr, get_within("key", "4000")).value(), "key");
    assert_eq!(ask(addr, get("plain")).value(), "plain");
    let left = left.lock().expect("no panic");
    assert!(left[0] > Some(Duration::from_secs(1800)), "{left:?}");
    assert_eq!(left[1..], [None]);
}

#[test]
fn request_with_no_time_left_starts_no_load() {
    let tested = Hanging::new(|server| server);
    let reply = tested.ask(get_within("key", "0"));
    assert_eq!(
        (reply.status, reply.header("larder-error")),
        (504, Some("deadline"))
    );
    assert_eq!(tested.gate.runs("key"), 0);
}

#[test]
fn client_that_closed_its_sending_side_gets_a_response_that_is_ready_soon() {
    let tested = Hanging::new(|server| server);
    let mut client = tested.connect();
    client.send(get("hang"));
    client.stream().shutdown(Shutdown::Write).expect("shutdown");
    eventually(|| tested.gate.runs("hang") == 1);
    // Longer than until the server first looks whether the client has left.
    std::thread::sleep(Duration::from_millis(50));
    tested.gate.open();
    assert_eq!(client.reply().value(), "hang");
}

#[test]
fn client_waits_for_a_loader_thread_while_others_load() {
    let tested = Hanging::with_group(|group| group.max_loader_threads(2), |server| server);
    let (mut first, mut second) = (tested.connect(), tested.connect());
    first.send(get("hang"));
    eventually(|| tested.gate.runs("hang") == 1);
    second.send(get("next"));
    // Longer than the server takes to refuse a request.
    std::thread::sleep(Duration::from_millis(50));
    tested.gate.open();
    assert_eq!(second.reply().value(), "next");
    // A getter that hangs does not hold the others for long.
    let tested = Hanging::with_group(|group| group.max_loader_threads(2), |server| server);
    let mut first = tested.connect();
    first.send(get("hang"));
    eventually(|| tested.gate.runs("hang") == 1);
    assert_eq!(
        tested.ask(get("next")).header("larder-error"),
        Some("overloaded")
    );
}

#[test]
fn client_waits_while_as_many_loads_run_as_the_group_allows() {
    let tested = Hanging::with_group(|group| group.max_concurrent_loads(1), |server| server);
    let (mut first, mut second) = (tested.connect(), tested.connect());
    first.send(get("hang"));
    eventually(|| tested.gate.runs("hang") == 1);
    // The owner is alive, so the client is to ask it again.
    assert_eq!(
        tested.ask(get_within("next", "100")).header("larder-error"),
        Some("loading")
    );
    second.send(get("next"));
    // Longer than a client waits for a loader thread.
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(tested.gate.runs("next"), 0);
    tested.gate.open();
    assert_eq!(second.reply().value(), "next");
    assert_eq!(first.reply().value(), "hang");
}

#[test]
fn loads_for_clients_leave_threads_to_own_callers() {
    let tested = Hanging::with_group(|group| group.max_loader_threads(8), |server| server);
    let mut stranger = tested.connect();
    let requests =
        (0..20).map(|n| get_within(&format!("hang {n}"), "200").replace("hang ", "hang%20"));
    stranger.send(requests.collect::<String>());
    let replies: Vec<_> = (0..20).map(|_| stranger.reply()).collect();
    let refused = replies
        .iter()
        .filter(|reply| reply.header("larder-error") == Some("overloaded"));
    assert!(refused.count() >= 16, "{replies:?}");
    let ctx = Context::background().with_timeout(Duration::from_secs(10));
    for n in 0..20 {
        let key = format!("own {n}");
        assert_eq!(
            tested.group.get_with(&ctx, &key).expect("a thread"),
            key.as_str()
        );
    }
}

#[test]
fn address_that_abandons_loads_may_start_no_more_until_they_end() {
    let tested = Hanging::new(|server| server.max_abandoned_loads(2));
    assert_eq!(tested.ask(get("cached")).value(), "cached");
    let abandon = |key: &str| tested.ask(get_within(key, "30"));
    for key in ["hang1", "hang2"] {
        assert_eq!(abandon(key).header("larder-error"), Some("loading"));
    }
    let reply = abandon("hang3");
    assert_eq!(
        (reply.status, reply.header("larder-error")),
        (503, Some("overloaded"))
    );
    assert!(reply.text().contains("127.0.0.1"), "{}", reply.text());
    assert_eq!(tested.gate.runs("hang3"), 0);
    // It may wait for loads that run, and gets what is cached.
    assert_eq!(abandon("hang1").header("larder-error"), Some("loading"));
    assert_eq!(tested.ask(get("cached")).value(), "cached");
    let ctx = Context::background().with_timeout(SHORT);
    let own = tested.group.get_with(&ctx, "hang3").map_err(|e| e.kind());
    assert_eq!(
        own,
        Err(ErrorKind::DeadlineExceeded),
        "the own caller loads"
    );
    tested.gate.open();
    eventually(|| tested.ask(get("new")).status == 200);
}

#[test]
fn shutdown_cuts_off_requests_that_wait_for_a_getter_and_leaves_no_thread() {
    let tested = Hanging::new(|server| server);
    let mut client = tested.connect();
    client.send(get("hang"));
    eventually(|| tested.gate.runs("hang") == 1);
    let error = tested.server.shutdown(SHORT).expect_err("the getter hangs");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(client.is_closed());
    eventually(|| tested.server.connections() == 0);
}

const HOUR: Duration = Duration::from_secs(3600);

/// A server whose values are fresh for half an hour, and served for an hour more while they are loaded.
fn serve_old(
    options: impl FnOnce(GroupBuilder) -> GroupBuilder,
    server: impl FnOnce(ServerBuilder) -> ServerBuilder,
) -> (Hanging, Clock) {
    let clock = Clock::manual();
    let with_old = |group: GroupBuilder| {
        let group = group.clock(clock.clone()).time_to_live(HOUR / 2);
        options(group.stale_if_error(HOUR))
    };
    (Hanging::with_group(with_old, server), clock)
}

#[test]
fn old_value_is_sent_before_the_soft_timeout_if_the_request_ends_earlier() {
    let (tested, clock) = serve_old(
        |group| group.soft_timeout(HOUR),
        |server| server.max_request_time(SHORT),
    );
    let ctx = Context::background();
    let set = tested.group.set(&ctx, "hang", "old", SetOptions::new());
    set.expect("it is alone");
    clock.advance(HOUR);
    for request in [get("hang"), get_within("hang", "3600000")] {
        assert_eq!(tested.ask(request).value(), "old");
    }
    assert_eq!(tested.gate.runs("hang"), 1, "a newer value is being loaded");
}

#[test]
fn clients_that_get_old_values_leave_threads_to_own_callers() {
    let soft = |group: GroupBuilder| group.soft_timeout(Duration::from_millis(1));
    let refreshed = |group: GroupBuilder| group.stale_while_revalidate(HOUR);
    let options: [fn(GroupBuilder) -> GroupBuilder; 2] = [soft, refreshed];
    for options in options {
        let options = |group: GroupBuilder| options(group.max_loader_threads(4));
        let (tested, clock) = serve_old(options, |server| server);
        let keys: Vec<String> = (0..8).map(|n| format!("hang {n}")).collect();
        for key in &keys {
            let set = tested
                .group
                .set(&Context::background(), key, "old", SetOptions::new());
            set.expect("it is alone");
        }
        clock.advance(HOUR);
        for key in &keys {
            assert_eq!(tested.ask(get(&key.replace(' ', "%20"))).value(), "old");
        }
        let ctx = Context::background().with_timeout(Duration::from_secs(20));
        assert_eq!(tested.group.get_with(&ctx, "key").expect("a thread"), "key");
    }
}
