//! Models of the connections: a shutdown, or a client that needs room, while connections become idle, become busy,
//! begin and end. Loom reports a deadlock if a shutdown waits for ever.

use std::hash::RandomState;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::loom_models::explore;

struct NoPeers;

impl KnownPeers for NoPeers {
    fn peers_at(&self, _: IpAddr) -> usize {
        0
    }

    fn count(&self) -> usize {
        0
    }

    fn leave(&self, _: &str) -> bool {
        false
    }
}

/// The connections of a server.
///
/// Loom lets a SeqCst load see the first value of an atomic although a SeqCst store has replaced it. So the models
/// store the first values, too. The order of the table is the same in all executions, because loom repeats them.
fn connections() -> Arc<Connections> {
    static HASHER: OnceLock<RandomState> = OnceLock::new();
    let connections = Arc::new(Connections::default());
    let hasher = HASHER.get_or_init(RandomState::new);
    connections.table.lock().open = HashMap::with_hasher(hasher.clone());
    connections.stopping.store(false, Ordering::SeqCst);
    connections
}

/// A connection that has been idle for [`AGE`], and its client's end.
fn connection() -> (Arc<Connection>, UnixStream) {
    let (stream, client) = UnixStream::pair().expect("a pair of sockets");
    let addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
    let mut connection = Connection::new(OwnedFd::from(stream).into(), addr, &NoPeers);
    let own = Arc::get_mut(&mut connection).expect("one reference");
    own.accepted = own.accepted.before(AGE).expect("a tick");
    connection.state.store(0, Ordering::SeqCst);
    (connection, client)
}

fn busy_connection() -> (Arc<Connection>, UnixStream) {
    let (connection, client) = connection();
    connection.set_activity(Activity::Busy);
    (connection, client)
}

/// The age of each connection.
const AGE: Duration = Duration::from_secs(100);

fn admit(
    connections: &Arc<Connections>,
    connection: &Arc<Connection>,
    max: usize,
) -> Option<ConnectionGuard> {
    let limits = ServerLimits {
        max_connections: max,
        ..ServerLimits::default()
    };
    connections.admit(connection, &limits, &NoPeers)
}

/// Whether a connection's thread ends before it waits for a request, as that of `Session::next_head` does.
fn ends_when_idle(connections: &Connections, connection: &Connection) -> bool {
    connection.set_activity(Activity::Idle);
    connections.is_stopping() || connection.is_evicted()
}

/// Serves one request, as a connection's thread does. Nobody else changes the state meanwhile, and the response
/// can be written.
fn serve_request(connection: &Connection) {
    connection.set_activity(Activity::Busy);
    let was_evicted = connection.is_evicted();
    assert!((&connection.stream).write(b"response").is_ok());
    assert_eq!(connection.is_evicted(), was_evicted, "it was cut");
}

/// Shuts down as `Server::shutdown` does once the accept thread has ended.
fn shut_down(connections: &Connections) {
    connections.close_idle();
    let deadline = Instant::now() + Duration::from_secs(3600);
    assert_eq!(connections.wait_until_none(false, deadline), 0);
    connections.reap();
    connections.set_stopped();
}

/// A connection becomes idle while the server stops. It sees that, or it is closed.
#[test]
fn idle_connection_is_always_closed_by_a_shutdown() {
    explore(|| {
        let connections = connections();
        let (connection, _client) = busy_connection();
        let _guard = admit(&connections, &connection, 1).expect("there is room");
        let serving = {
            let (connections, connection) = (connections.clone(), connection.clone());
            thread::spawn(move || ends_when_idle(&connections, &connection))
        };
        connections.stop();
        connections.close_idle();
        let has_ended = serving.join().unwrap();
        assert!(has_ended || connection.has_ended());
    });
}

/// A connection becomes idle and gets a request while the server stops. It is not cut while it is busy, and it ends
/// after that request.
#[test]
fn busy_connection_is_never_cut_by_a_shutdown() {
    explore(|| {
        let connections = connections();
        let (connection, _client) = busy_connection();
        let _guard = admit(&connections, &connection, 1).expect("there is room");
        let serving = {
            let (connections, connection) = (connections.clone(), connection.clone());
            thread::spawn(move || {
                connection.set_activity(Activity::Idle);
                serve_request(&connection);
                ends_when_idle(&connections, &connection)
            })
        };
        connections.stop();
        connections.close_idle();
        let has_ended = serving.join().unwrap();
        assert!(has_ended || connection.has_ended());
    });
}

/// A connection is accepted while the server stops. Its thread ends, and the shutdown, which waits for that, is
/// woken and joins the thread.
#[test]
fn connection_that_begins_during_a_shutdown_ends_with_it() {
    explore(|| {
        let connections = connections();
        let has_ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let accepting = {
            let (connections, has_ended) = (connections.clone(), has_ended.clone());
            thread::spawn(move || {
                let (connection, client) = connection();
                let guard = admit(&connections, &connection, 1).expect("there is room");
                let (id, served) = (guard.id, connections.clone());
                let serving = thread::spawn(move || {
                    if !ends_when_idle(&served, &guard.connection) {
                        // It waits for a request.
                        while !guard.connection.has_ended() {
                            thread::yield_now();
                        }
                    }
                    drop((guard, client));
                    has_ended.store(true, Ordering::SeqCst);
                });
                connections.attach(id, serving);
            })
        };
        connections.stop();
        accepting.join().unwrap();
        shut_down(&connections);
        assert!(
            has_ended.load(Ordering::SeqCst),
            "its thread was not joined"
        );
        assert_eq!(connections.count(), 0);
    });
}

/// A thread waits until the server has stopped, from outside or from within a request, and the request ends. The
/// shutdown is woken by the one, and the thread by the other.
#[test]
fn caller_that_waits_for_the_end_is_woken() {
    for from_within in [false, true] {
        explore(move || {
            let connections = connections();
            let (connection, client) = busy_connection();
            let guard = admit(&connections, &connection, 1).expect("there is room");
            if from_within {
                // Loom runs all threads of a model on one thread.
                let this = std::thread::current().id();
                connection.thread.set(this).expect("it is not set");
            }
            let waits = |connections: &Arc<Connections>| {
                let connections = connections.clone();
                move || connections.wait_until_stopped()
            };
            let outside = (!from_within).then(|| thread::spawn(waits(&connections)));
            let inside = from_within.then(|| waits(&connections));
            let request = thread::spawn(move || {
                inside.map(|wait| wait());
                drop((guard, client));
            });
            connections.stop();
            shut_down(&connections);
            request.join().unwrap();
            outside.map(|outside| outside.join().unwrap());
        });
    }
}

/// Two requests shut the server down at the same time. Neither waits for the other.
#[test]
fn two_requests_that_shut_the_server_down_do_not_wait_for_each_other() {
    explore(|| {
        let connections = connections();
        let ended = Arc::new(AtomicUsize::new(0));
        let requests = [(); 2].map(|()| {
            let (connections, ended) = (connections.clone(), ended.clone());
            let (connection, client) = busy_connection();
            let guard = admit(&connections, &connection, 2).expect("there is room");
            thread::spawn(move || {
                connections.stop();
                connections.close_idle();
                // As `exempt_caller` does, which cannot tell the threads of a model from each other.
                let mut table = connections.table.lock();
                table.open.get_mut(&guard.id).expect("it is open").exempt = true;
                drop(table);
                let deadline = Instant::now() + Duration::from_secs(3600);
                assert_eq!(connections.wait_until_none(true, deadline), 0);
                connections.reap();
                connections.set_stopped();
                // Neither request ends before both calls have returned.
                ended.fetch_add(1, Ordering::SeqCst);
                while ended.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
                drop((guard, client));
            })
        });
        requests
            .into_iter()
            .for_each(|request| request.join().unwrap());
        assert_eq!(connections.count(), 0);
    });
}

/// A client needs room while the only connection, which has long been idle, gets a request. Either the client is
/// refused, and the request served, or the connection makes room, and stays closed.
#[test]
fn connection_that_gets_a_request_makes_room_or_keeps_its_place() {
    explore(|| {
        let connections = connections();
        let (idle, _client) = connection();
        let _guard = admit(&connections, &idle, 1).expect("there is room");
        let serving = {
            let idle = idle.clone();
            thread::spawn(move || serve_request(&idle))
        };
        let (new, _new_client) = busy_connection();
        let admitted = admit(&connections, &new, 1);
        serving.join().unwrap();
        assert_eq!(admitted.is_some(), idle.is_evicted());
        assert_eq!(idle.has_ended(), idle.is_evicted());
        assert_eq!(connections.count(), 1);
    });
}

/// A connection's client reads nothing while the connection is closed to make room. It makes room for one other
/// connection, and not for a second one.
#[test]
fn connection_that_was_closed_makes_room_once() {
    explore(|| {
        let connections = connections();
        let admit = |new: &Arc<Connection>| admit(&connections, new, 2);
        let (closed, _client) = connection();
        let busy = [(); 3].map(|()| busy_connection());
        let _open = [&closed, &busy[0].0, &busy[1].0].map(|new| admit(new).expect("room"));
        assert!(closed.is_evicted());
        let writing = {
            let closed = closed.clone();
            thread::spawn(move || closed.set_activity(Activity::Gone))
        };
        let admitted = admit(&busy[2].0);
        writing.join().unwrap();
        assert!(admitted.is_none() && closed.is_evicted());
        assert_eq!(connections.count(), 2);
    });
}

/// Two threads shut the server down while its last connection ends. When either call returns, the connection's
/// thread has ended.
#[test]
fn each_of_two_shutdowns_returns_when_all_threads_have_ended() {
    explore(|| {
        let connections = connections();
        let (connection, client) = busy_connection();
        let guard = admit(&connections, &connection, 1).expect("there is room");
        let id = guard.id;
        let has_ended = Arc::new(AtomicBool::new(false));
        let serving = {
            let has_ended = has_ended.clone();
            thread::spawn(move || {
                drop((guard, client));
                has_ended.store(true, Ordering::SeqCst);
            })
        };
        connections.attach(id, serving);
        connections.stop();
        let shut_down = || {
            let (connections, has_ended) = (connections.clone(), has_ended.clone());
            move || {
                shut_down(&connections);
                assert!(has_ended.load(Ordering::SeqCst));
            }
        };
        let other = thread::spawn(shut_down());
        shut_down()();
        other.join().unwrap();
    });
}
