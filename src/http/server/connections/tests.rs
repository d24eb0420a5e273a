use super::*;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// Peers with these addresses, or none.
pub(super) struct Peers(pub Vec<IpAddr>);

impl KnownPeers for Peers {
    fn peers_at(&self, ip: IpAddr) -> usize {
        self.0.iter().filter(|peer| **peer == ip).count()
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    fn leave(&self, _id: &str) -> bool {
        false
    }
}

struct Tested {
    connections: Arc<Connections>,
    limits: ServerLimits,
    peers: Peers,
    /// Keeps the other ends of the connections.
    listener: TcpListener,
}

impl Tested {
    fn new(max_connections: usize, max_connections_per_addr: usize, peers: Vec<IpAddr>) -> Self {
        Tested {
            connections: Arc::default(),
            limits: ServerLimits {
                max_connections,
                max_connections_per_addr,
                ..ServerLimits::default()
            },
            peers: Peers(peers),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
        }
    }

    /// A connection from `ip`, which is busy.
    fn admit(&self, ip: impl Into<IpAddr>) -> Option<ConnectionGuard> {
        let addr = self.listener.local_addr().expect("addr");
        let stream = TcpStream::connect(addr).expect("connect");
        let mut connection = Connection::new(stream, SocketAddr::new(ip.into(), 1), &self.peers);
        let own = Arc::get_mut(&mut connection).expect("one reference");
        own.accepted = own.accepted.before(AGE).expect("a tick");
        connection.set_activity(Activity::Busy);
        let connections = &self.connections;
        connections.admit(&connection, &self.limits, &self.peers)
    }

    fn busy(&self, ip: impl Into<IpAddr>) -> ConnectionGuard {
        self.admit(ip).expect("there is room")
    }

    /// A connection that has been idle for `seconds`.
    fn idle(&self, ip: impl Into<IpAddr>, seconds: u64) -> ConnectionGuard {
        let guard = self.busy(ip);
        let since = AGE - Duration::from_secs(seconds);
        let state = &guard.connection.state;
        state.store(millis(since), Ordering::SeqCst);
        guard
    }
}

/// The age of each connection.
const AGE: Duration = Duration::from_secs(100);

fn is_evicted(guard: &ConnectionGuard) -> bool {
    guard.connection.is_evicted()
}

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

#[test]
fn limit_per_address_counts_open_connections_only() {
    let tested = Tested::new(4, 2, vec![]);
    let first = tested.busy(STRANGER);
    let _mapped = tested.busy(STRANGER.to_ipv6_mapped());
    assert!(tested.admit(STRANGER).is_none(), "over the limit");
    let _other = tested.busy(OTHER);
    drop(first);
    let _again = tested.busy(STRANGER);
    assert_eq!(tested.connections.count(), 3);
}

#[test]
fn loopback_is_limited_by_the_total_alone() {
    let tested = Tested::new(3, 1, vec![]);
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let ips: [IpAddr; 4] = [
        Ipv4Addr::new(127, 0, 0, 9).into(),
        Ipv6Addr::LOCALHOST.into(),
        mapped.into(),
        mapped.into(),
    ];
    let guards: Vec<_> = ips.into_iter().map(|ip| tested.admit(ip)).collect();
    let admitted = guards.iter().map(Option::is_some);
    assert!(admitted.eq([true, true, true, false]));
}

#[test]
fn address_of_several_peers_may_have_the_connections_of_each() {
    let tested = Tested::new(100, 2, vec![PEER.into(), PEER.into(), OTHER.into()]);
    let _open: Vec<_> = (0..4).map(|_| tested.busy(PEER)).collect();
    assert!(tested.admit(PEER).is_none());
}

#[test]
fn connection_that_was_idle_longest_makes_room() {
    let tested = Tested::new(4, 32, vec![]);
    let busy = tested.busy(STRANGER);
    let [short, long, fresh] = [5, 50, 0].map(|seconds| tested.idle(STRANGER, seconds));
    let _new = tested.busy(OTHER);
    assert!(is_evicted(&long));
    let _second = tested.busy(OTHER);
    assert!(is_evicted(&short));
    assert!(
        tested.admit(OTHER).is_none(),
        "an idle moment is not enough"
    );
    assert!(!is_evicted(&busy) && !is_evicted(&fresh));
}

#[test]
fn connection_whose_body_arrives_makes_room_and_does_not_end_at_a_shutdown() {
    let tested = Tested::new(1, 32, vec![]);
    let receiving = tested.busy(STRANGER);
    let connection = &receiving.connection;
    let since = millis(AGE - Duration::from_secs(1));
    connection.state.store(RECEIVING | since, Ordering::SeqCst);
    tested.connections.close_idle();
    assert!(!is_evicted(&receiving));
    let _new = tested.busy(OTHER);
    assert!(is_evicted(&receiving));
}

#[test]
fn body_that_began_a_moment_ago_is_not_cut() {
    let tested = Tested::new(1, 32, vec![]);
    let receiving = tested.busy(STRANGER);
    receiving.connection.set_activity(Activity::Receiving);
    assert!(tested.admit(OTHER).is_none());
    assert!(!is_evicted(&receiving));
}

#[test]
fn idle_connection_of_the_same_address_makes_room_at_the_limit_of_the_address() {
    let tested = Tested::new(100, 2, vec![]);
    let other = tested.idle(OTHER, 50);
    let [own, _busy] = [tested.idle(STRANGER, 5), tested.busy(STRANGER)];
    let _new = tested.busy(STRANGER);
    assert!(is_evicted(&own) && !is_evicted(&other));
}

#[test]
fn strangers_leave_a_quarter_of_the_connections_to_peers() {
    let tested = Tested::new(8, 32, vec![PEER.into()]);
    let _strangers: Vec<_> = (0..6).map(|_| tested.busy(STRANGER)).collect();
    assert!(tested.admit(STRANGER).is_none());
    let _peers: Vec<_> = (0..2).map(|_| tested.busy(PEER)).collect();
    assert!(tested.admit(PEER).is_none());
}

#[test]
fn strangers_leave_a_connection_to_each_peer_up_to_three_quarters() {
    for (peers, kept) in [(0, 0), (2, 2), (5, 5), (6, 6), (7, 6), (100, 6)] {
        let tested = Tested::new(8, 32, vec![PEER.into(); peers]);
        let _strangers: Vec<_> = (kept..8).map(|_| tested.busy(STRANGER)).collect();
        assert!(tested.admit(STRANGER).is_none(), "{peers} peers");
        let _peers: Vec<_> = (0..kept).map(|_| tested.busy(PEER)).collect();
        assert!(tested.admit(PEER).is_none(), "{peers} peers");
    }
}

#[test]
fn stranger_makes_room_for_a_peer_and_not_the_other_way() {
    let tested = Tested::new(2, 32, vec![PEER.into()]);
    let [peer, stranger] = [tested.idle(PEER, 50), tested.idle(STRANGER, 5)];
    let second = tested.idle(PEER, 20);
    assert!(is_evicted(&stranger) && !is_evicted(&peer));
    assert!(tested.admit(STRANGER).is_none());
    let _third = tested.busy(PEER);
    assert!(is_evicted(&peer) && !is_evicted(&second));
}

#[test]
fn connection_whose_client_has_left_makes_room_first() {
    let tested = Tested::new(2, 32, vec![]);
    let [idle, left] = [tested.idle(STRANGER, 50), tested.busy(STRANGER)];
    left.connection.set_activity(Activity::Gone);
    let _new = tested.busy(OTHER);
    assert!(is_evicted(&left) && !is_evicted(&idle));
}

#[cfg(unix)]
#[test]
fn busy_connection_makes_room_if_its_client_has_left() {
    let tested = Tested::new(2, 32, vec![]);
    let addr = tested.listener.local_addr().expect("addr");
    let [here, gone] = [(); 2].map(|()| {
        let stream = TcpStream::connect(addr).expect("connect");
        let (client, addr) = tested.listener.accept().expect("accept");
        let connection = Connection::new(stream, addr, &tested.peers);
        connection.set_activity(Activity::Busy);
        let guard = tested
            .connections
            .admit(&connection, &tested.limits, &tested.peers);
        (guard.expect("there is room"), client)
    });
    assert!(tested.admit(OTHER).is_none());
    drop(gone.1);
    let _new = tested.busy(OTHER);
    assert!(is_evicted(&gone.0) && !is_evicted(&here.0));
    assert!(tested.admit(OTHER).is_none());
}

#[test]
fn evicted_connection_stays_evicted_until_it_ends() {
    let tested = Tested::new(1, 32, vec![]);
    let idle = tested.idle(STRANGER, 5);
    let _new = tested.busy(STRANGER);
    // Its thread has just read a request.
    idle.connection.set_activity(Activity::Busy);
    assert!(is_evicted(&idle));
    idle.connection.set_activity(Activity::Idle);
    assert!(is_evicted(&idle));
    assert_eq!(tested.connections.count(), 1);
    tested.connections.stop();
    assert_eq!(tested.connections.count(), 2);
}

#[test]
fn evicted_connections_that_have_not_ended_are_bounded() {
    let tested = Tested::new(2, 32, vec![]);
    let _idle: Vec<_> = (0..4).map(|_| tested.idle(STRANGER, 5)).collect();
    assert!(tested.admit(STRANGER).is_none());
}
