//! Responds to the requests that change data. Only known peers may send them.

use std::net::SocketAddr;

use crate::http::server::endpoint::{Endpoint, NOT_ALLOWED, bad_path, failed};
use crate::http::server::handler::Request;
use crate::http::server::response::Response;
use crate::panics::caught;
use crate::pb::RemoveKeysRequest;
use crate::wire::{self, PeerPath};

impl Endpoint {
    /// The response to a request that changes data; `None` if it is another one.
    pub(super) fn change(&self, request: &Request<'_>) -> Option<Response> {
        let base = &self.config.base_path;
        let path = match (request.head.method, request.head.path) {
            ("DELETE" | "PUT", path) => {
                wire::parse_path(base, path, self.plus_is_space).map_err(bad_path)
            }
            ("POST", path) => {
                let path = wire::parse_path(base, path, self.plus_is_space).ok()?;
                let is_verb = {
                    matches!(
                        &*path.key,
                        wire::REMOVE_KEYS | wire::CLEAR | wire::REMOVALS | wire::DROP
                    )
                };
                is_verb.then_some(Ok(path))?
            }
            _ => return None,
        };
        // A panic of the program's eviction listener.
        let response = caught(|| self.apply(request, &path?));
        let panicked = || Err(Response::text(500, "the eviction listener panicked"));
        Some(
            response
                .unwrap_or_else(panicked)
                .unwrap_or_else(|error| error),
        )
    }

    fn apply(&self, request: &Request<'_>, path: &PeerPath<'_>) -> Result<Response, Response> {
        if !self.is_trusted(request.peer_addr) {
            return Err(Response::text(403, NOT_ALLOWED));
        }
        let recipient = request.header(wire::RECIPIENT_HEADER);
        let own = self.membership.own();
        if recipient.is_some_and(|to| own.recipient.as_deref().is_some_and(|own| own != to)) {
            return Err(Response::text(wire::MISDIRECTED, OTHER_NODE));
        }
        let group = self.group(&path.group)?;
        let body = request.body;
        let malformed = |why: &str| Response::text(400, format!("a malformed body: {why}"));
        match (request.head.method, &*path.key) {
            ("DELETE", key) => group.serve_remove(&RemoveKeysRequest {
                group: path.group.as_ref().into(),
                keys: vec![key.into()],
                removal_id: removal_id_of(request)?,
                unless_applied: None,
            }),
            ("PUT", key) => {
                let set = wire::decode_set(body).map_err(|why| malformed(&why))?;
                if *set.key != *key || set.group != path.group {
                    return Err(malformed("it is for another key"));
                }
                group.serve_set(&set).map_err(|error| failed(&error))?;
            }
            (_, wire::REMOVE_KEYS) => group.serve_remove(&RemoveKeysRequest {
                group: path.group.as_ref().into(),
                keys: wire::decode_keys(body, MAX_KEYS).map_err(malformed)?,
                removal_id: removal_id_of(request)?,
                unless_applied: None,
            }),
            (_, wire::DROP) => {
                group.serve_remove(&wire::decode_drop(body).map_err(|why| malformed(&why))?);
            }
            (_, wire::REMOVALS) => {
                let table = wire::decode_table(body).map_err(|why| malformed(&why))?;
                let answer = wire::encode_change(&group.serve_removals(&table));
                let answer = answer.map_err(|error| failed(&error))?;
                return Ok(Response::new(200, wire::CONTENT_TYPE, answer));
            }
            _ => {
                group.serve_clear(&wire::decode_clear(body).map_err(|why| malformed(&why))?);
            }
        }
        Ok(Response::text(200, ""))
    }

    /// Whether the client at this address may change data and see the list of peers: a program on this
    /// machine, or a peer of the pool's list.
    pub(super) fn is_trusted(&self, client: Option<SocketAddr>) -> bool {
        let Some(ip) = client.map(|addr| addr.ip().to_canonical()) else {
            return false;
        };
        let is_trusted = ip.is_loopback() || self.peers.peers_at(ip) > 0;
        if !is_trusted {
            // It may be a peer that has another address than before. The next request is then trusted.
            self.peers.look_up_again();
        }
        is_trusted
    }

    /// The longest body that is read of a request below the base path. A value that a peer sets is
    /// longer than other bodies.
    pub(crate) fn max_body(&self, method: &str, client: Option<SocketAddr>, other: usize) -> usize {
        match method {
            "PUT" if self.is_trusted(client) => self.config.max_value_size.saturating_add(other),
            _ => other,
        }
    }
}

fn removal_id_of(request: &Request<'_>) -> Result<Option<u64>, Response> {
    let mut headers = request.headers();
    let id = headers.find(|(name, _)| name.eq_ignore_ascii_case(wire::REMOVAL_ID_HEADER));
    match id.map(|(_, value)| wire::parse_removal_id(value)) {
        Some(None) => Err(Response::text(
            400,
            "the number of the removal is not a number",
        )),
        id => Ok(id.flatten()),
    }
}

const OTHER_NODE: &str = "the change is for another node: does its address lead to this one?";

/// The most keys that are read of one request.
const MAX_KEYS: usize = 65_536;

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use std::cell::OnceCell;
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::context::Context;
    use crate::group::Group;
    use crate::group::registry::Registry;
    use crate::http::config::{Config, KnownPeers};
    use crate::http::membership::Membership;
    use crate::http::server::head::RequestHead;
    use crate::http::server::wait::LoadLimits;
    use crate::sink::Sink;
    use crate::sync::Arc;
    use crate::sync::atomic::{AtomicUsize, Ordering};

    /// A list with one peer, at 10.0.0.2, and how often its name was looked up again.
    #[derive(Default)]
    struct OnePeer(AtomicUsize);

    impl KnownPeers for OnePeer {
        fn peers_at(&self, ip: IpAddr) -> usize {
            usize::from(ip == IpAddr::from([10, 0, 0, 2]))
        }

        fn count(&self) -> usize {
            1
        }

        fn look_up_again(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn leave(&self, _id: &str) -> bool {
            false
        }
    }

    const HOST: [httparse::Header<'_>; 1] = [httparse::Header {
        name: "Host",
        value: b"h",
    }];

    /// Addresses, and whether each is of this machine or of a peer.
    const CLIENTS: [(&str, bool); 7] = [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("10.0.0.2:1", true),
        ("[::ffff:10.0.0.2]:1", true),
        ("10.0.0.3:1", false),
        ("[2001:db8::1]:1", false),
    ];

    fn endpoint() -> (Endpoint, Group) {
        endpoint_with(Arc::new(OnePeer::default()))
    }

    fn endpoint_with(peers: Arc<OnePeer>) -> (Endpoint, Group) {
        let registry = Registry::new();
        let load = |_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?);
        let group = registry.new_group("g", 1 << 20, load).expect("a group");
        let endpoint = Endpoint {
            registry,
            peers,
            config: Arc::new(Config::for_test()),
            membership: Arc::new(Membership::new()),
            plus_is_space: false,
            context: None,
        };
        (endpoint, group)
    }

    #[test]
    fn names_of_peers_are_looked_up_again_for_a_client_that_may_be_one_of_them() {
        let peers = Arc::new(OnePeer::default());
        let (endpoint, _) = endpoint_with(peers.clone());
        for (client, is_allowed) in CLIENTS {
            let before = peers.0.load(Ordering::SeqCst);
            let client = client.parse().expect("an address");
            assert_eq!(endpoint.is_trusted(Some(client)), is_allowed);
            let looked_up = peers.0.load(Ordering::SeqCst) - before;
            assert_eq!(looked_up, usize::from(!is_allowed), "{client}");
        }
    }

    #[test]
    fn only_this_machine_and_peers_see_explanations_and_lists_and_may_leave() {
        let (endpoint, _) = endpoint();
        for (method, path) in [
            ("GET", "g/k?explain"),
            ("GET", "_peers"),
            ("POST", "_leave/"),
        ] {
            let target = format!("/_groupcache/{path}");
            let head = RequestHead::new(method, &target, false, &HOST).expect("a head");
            let status = |client| {
                let limits = LoadLimits {
                    max_request_time: Duration::from_secs(60),
                    began: &OnceCell::new(),
                    connection: None,
                };
                let request = Request {
                    head: &head,
                    body: b"",
                    peer_addr: client,
                };
                let reply = endpoint.respond(&request, limits);
                reply.into_response().status()
            };
            for (client, is_allowed) in CLIENTS {
                let status = status(Some(client.parse().expect("an address")));
                assert_eq!(
                    status == 403,
                    !is_allowed,
                    "{method} {path} {client}: {status}"
                );
            }
            assert_eq!(status(None), 403, "{path} of an unknown address");
        }
    }

    #[test]
    fn only_this_machine_and_peers_may_change_data() {
        let (endpoint, group) = endpoint();
        for (method, path) in [
            ("DELETE", "k"),
            ("PUT", "k"),
            ("POST", "_clear/"),
            ("POST", "_remove-keys/"),
        ] {
            let target = format!("/_groupcache/g/{path}");
            let head = RequestHead::new(method, &target, false, &HOST).expect("a head");
            for (client, is_allowed) in CLIENTS {
                group.get("k").expect("a value");
                let client = client.parse().expect("an address");
                let request = Request {
                    head: &head,
                    body: b"",
                    peer_addr: Some(client),
                };
                let response = endpoint.change(&request).expect("a change");
                assert_eq!(response.status() == 403, !is_allowed, "{method} {client}");
                assert!(is_allowed || group.contains_key("k"));
                let most = endpoint.max_body(method, Some(client), 9);
                assert_eq!(most > 9, is_allowed && method == "PUT");
            }
            let request = Request {
                head: &head,
                body: b"",
                peer_addr: None,
            };
            assert_eq!(endpoint.change(&request).expect("a change").status(), 403);
        }
    }
}
