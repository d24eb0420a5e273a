//! Faults: each test makes one happen, for real where it can, and checks the effect on callers.
//!
//! - `cold_restart`: a node starts without its values, and its origin serves few loads at a time.
//! - `flapping_lists`: the lists of peers change again and again.
//! - `getters`: the getter fails, panics, hangs or is slow.
//! - `planned_changes`: nodes join, leave, and are restarted.
//! - `rings`: nodes have different lists of peers; many callers request one key; the wall clock jumps.
//! - `scarce`: a server runs out of descriptors or threads, or is shut down under load.
//! - `hostile_clients`: clients that are slow, send floods, or send ambiguous requests.
//! - `held_connections`: clients that hold connections, threads or memory which others need.
//! - `hostile_servers`: peers whose answers are slow, broken or endless.
//! - `sick_peers`: peers that are killed, stopped, slow or away for good.
//! - `sick_nodes`: one of five is slow, stopped, loses packets, has another list, or no time.
//! - `dumps`: a process is killed while it dumps, or its disk is full.
//! - `slow_peers`: peers whose answers are late.
//! - `silent_peers`: peers that do not answer, answer late, or whose connections are dead.
//!
//! Nodes are registries in this process (`cluster`) or processes of their own (`process`). A limit of
//! time is compared with a control that is measured in the same moment, so that a slow machine
//! fails no test.

#![cfg(all(feature = "http", unix, not(larder_loom)))]

mod cluster;
mod late_peeks;
mod load;
mod node;
mod process;
#[cfg(target_os = "linux")]
mod user_link;

#[allow(dead_code, reason = "the helpers of another test program")]
#[path = "../group/common.rs"]
mod common;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "the helpers of another test program")]
#[path = "../promise/harness/namespaces.rs"]
mod namespaces;
#[allow(dead_code, reason = "the helpers of another test program")]
#[path = "../http/server/support.rs"]
mod raw_client;
#[allow(dead_code, reason = "the helpers of another test program")]
#[path = "../http/client/raw_server.rs"]
mod raw_server;

mod cold_restart;
mod dumps;
mod flapping_lists;
mod getters;
mod held_connections;
mod hostile_clients;
mod hostile_servers;
mod planned_changes;
mod rings;
mod scarce;
#[cfg(target_os = "linux")]
mod sick_nodes;
mod sick_peers;
mod silent_peers;
mod slow_peers;

/// This is no test of its own: the other tests start this program again for it.
#[test]
#[ignore = "a node of the other tests"]
fn node_process() {
    if let Ok(options) = std::env::var(process::OPTIONS) {
        node::run(&options);
    }
}
