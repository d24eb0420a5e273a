//! Nodes: processes that the tests start, control through their front, stop and kill.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use larder::consistent_hash::{Map, Preset};
use serde_json::{Value, json};

/// The program of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Go,
    /// A Go program of the protocol of mailgun/groupcache.
    Mailgun,
    Larder,
}

impl Program {
    /// Starts a node and waits until it listens. It ends when its handle is dropped, or with this
    /// process, because its standard input ends then.
    pub fn start(self, flags: &[&str]) -> Node {
        let (variable, command) = match self {
            Program::Go => ("LARDER_INTEROP_GO", Some("node")),
            Program::Mailgun => ("LARDER_INTEROP_GO", Some("mailgun")),
            Program::Larder => ("LARDER_INTEROP_NODE", None),
        };
        let program = std::env::var_os(variable)
            .unwrap_or_else(|| panic!("{variable} is not set: run tests/interop/run.sh"));
        let mut child = Command::new(program)
            .args(command)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let stdin = child.stdin.take();
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the node prints a line");
        let url = line.trim().strip_prefix("listening ");
        Node {
            url: url.expect("the node listens").to_owned(),
            program: self,
            child,
            _stdin: stdin,
        }
    }
}

/// A running node.
pub struct Node {
    pub url: String,
    pub program: Program,
    child: Child,
    /// The node ends when this is closed.
    _stdin: Option<ChildStdin>,
}

/// An answer of the front.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Got {
    /// The text of an error.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Node {
    /// Asks for a key of the group `values`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Got {
        self.get_with(key, "values", None)
    }

    /// Asks for a key, with a deadline.
    pub fn get_within(&self, key: impl AsRef<[u8]>, timeout: Duration) -> Got {
        self.get_with(key, "values", Some(timeout))
    }

    /// Asks for a key of a group.
    pub fn get_with(&self, key: impl AsRef<[u8]>, group: &str, timeout: Option<Duration>) -> Got {
        let timeout = timeout.map_or(String::new(), |t| format!("&timeout_ms={}", t.as_millis()));
        self.ask(&format!("/get?group={group}{timeout}"), key.as_ref())
    }

    /// Makes the node remove a key of the group `values` from all nodes.
    pub fn remove(&self, key: &str) -> Got {
        self.ask("/remove", key.as_bytes())
    }

    /// Makes the node set a key of the group `values`.
    pub fn set(&self, key: &str, value: &[u8]) -> Got {
        self.ask(&format!("/set?key={key}"), value)
    }

    /// Asks for a key, and checks its value.
    pub fn expect(&self, key: &str) {
        let got = self.get(key);
        assert_eq!(got.status, 200, "{key:?} at {self:?}: {}", got.text());
        assert!(
            got.body == value_of(key.as_bytes()),
            "{key:?} at {self:?} is wrong: {} bytes",
            got.body.len()
        );
    }

    /// The runs of this node's getter for each key. U+FFFD replaces the bytes that are not UTF-8.
    pub fn loads(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.json("/loads", &Value::Null)).expect("counts")
    }

    /// The runs of this node's getter for `key`.
    pub fn loads_of(&self, key: &str) -> u64 {
        self.loads().get(key).copied().unwrap_or(0)
    }

    /// A counter, summed over the node's groups.
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.json("/stats", &Value::Null);
        stats[name].as_u64().unwrap_or_else(|| panic!("no {name}"))
    }

    /// Sets the node's list of peers.
    pub fn set_peers(&self, urls: &[&str]) {
        self.json("/peers", &json!(urls));
    }

    /// The owner of each key by this node's ring.
    pub fn owners(&self, keys: &[String]) -> Vec<String> {
        serde_json::from_value(self.json("/owners", &json!(keys))).expect("URLs")
    }

    /// Makes the node get keys of its own group and check their values.
    pub fn hammer(&self, keys: &[String], threads: usize, time: Duration) -> Value {
        let todo = json!({
            "group": "uncached",
            "keys": keys,
            "threads": threads,
            "seconds": time.as_secs_f64(),
        });
        self.json("/hammer", &todo)
    }

    /// Waits until a Go node is `serving` `count` requests, or a larder node is `loading` `count` keys.
    pub fn wait_for(&self, what: &str, count: usize) {
        self.json(
            &format!("/wait?{what}={count}&timeout_ms=10000"),
            &Value::Null,
        );
    }

    fn json(&self, path: &str, body: &Value) -> Value {
        let got = self.ask(path, body.to_string().as_bytes());
        assert_eq!(got.status, 200, "{path} at {self:?}: {}", got.text());
        serde_json::from_slice(&got.body).expect("JSON")
    }

    fn ask(&self, path: &str, body: &[u8]) -> Got {
        request("POST", &format!("{}{path}", self.url), body)
    }

    /// Stops the process (SIGSTOP). The kernel still accepts its connections, but it does not answer.
    pub fn stop(&self) {
        self.signal("-STOP");
    }

    /// Continues a stopped process.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.expect("there is a kill").success());
    }

    /// Kills the process. When this returns its port is closed.
    pub fn kill(mut self) -> String {
        self.end();
        self.url.clone()
    }

    fn end(&mut self) {
        // SIGKILL also ends a stopped process. The end of its input would not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} node {}", self.program, self.url)
    }
}

/// Two Go nodes, then two larder nodes, all peers of each other.
pub fn two_and_two() -> Vec<Node> {
    cluster([Program::Go, Program::Go, Program::Larder, Program::Larder].map(|p| p.start(&[])))
}

/// Nodes that are peers of each other.
pub fn cluster(nodes: impl IntoIterator<Item = Node>) -> Vec<Node> {
    let nodes: Vec<Node> = nodes.into_iter().collect();
    let urls: Vec<&str> = nodes.iter().map(|node| node.url.as_str()).collect();
    for node in &nodes {
        node.set_peers(&urls);
    }
    nodes
}

/// The first `count` keys `PREFIX0`, `PREFIX1`… that one of `owners` owns, by the ring of `judge`.
pub fn keys_owned_by(judge: &Node, owners: &[&Node], prefix: &str, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    for start in (0..).step_by(1000) {
        let keys: Vec<String> = (start..start + 1000)
            .map(|i| format!("{prefix}{i}"))
            .collect();
        let of = judge.owners(&keys);
        let owned = keys.into_iter().zip(of);
        found.extend(
            owned
                .filter(|(_, owner)| owners.iter().any(|node| node.url == *owner))
                .map(|(key, _)| key),
        );
        if found.len() >= count {
            found.truncate(count);
            break;
        }
    }
    found
}

/// Keys that `owner` owns, and that `next` would own without it.
pub fn keys_of_then(nodes: &[Node], owner: &Node, next: &Node, prefix: &str) -> Vec<String> {
    let mut ring = Map::preset(Preset::Golang);
    ring.add(nodes.iter().map(|node| &node.url));
    let order = [owner, next].map(|node| node.url.as_str());
    let keys = (0..1000).map(|i| format!("{prefix}{i}"));
    keys.filter(|key| ring.successors(key).take(2).eq(order))
        .take(20)
        .collect()
}

/// The value that either program loads for a key.
pub fn value_of(key: &[u8]) -> Vec<u8> {
    if let Some(rest) = key.strip_prefix(b"size:") {
        let digits: String = rest
            .iter()
            .map_while(|byte| byte.is_ascii_digit().then_some(char::from(*byte)))
            .collect();
        let size: usize = digits.parse().expect("a size");
        return (0..size).map(|i| (i % 251) as u8).collect();
    }
    [b"value-of-", key].concat()
}

/// One request by plain HTTP.
pub fn request(method: &str, url: &str, body: &[u8]) -> Got {
    static AGENT: OnceLock<ureq::Agent> = OnceLock::new();
    let agent = AGENT.get_or_init(|| {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .proxy(None)
            .max_idle_connections(64)
            .max_idle_connections_per_host(16)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent()
    });
    let sent = ureq::http::Request::builder()
        .method(method)
        .uri(url)
        .body(body.to_vec())
        .expect("a request");
    let begun = Instant::now();
    let mut response = agent.run(sent).unwrap_or_else(|e| panic!("{url}: {e}"));
    let body = response.body_mut().with_config().limit(64 << 20);
    let body = body.read_to_vec().unwrap_or_else(|e| panic!("{url}: {e}"));
    Got {
        status: response.status().as_u16(),
        body,
        took: begun.elapsed(),
    }
}
