//! Network namespaces on one bridge, so that each process has a network of its own. Needs root.

use std::io::{Error, Result};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers the clusters of this process. The kernel removes the devices of a namespace some time after its name
/// is gone, so the next cluster must not use their names again.
static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// Removed when it is dropped.
pub struct Namespaces {
    /// Unique on this machine: the name of the bridge. A node's namespace is `{name}-{n}`.
    pub name: String,
    nodes: usize,
    /// The addresses are `10.{subnet}.{n + 1}`.
    subnet: String,
}

impl Namespaces {
    /// # Errors
    ///
    /// The system's, for example without root.
    pub fn create(nodes: usize) -> Result<Namespaces> {
        let id = std::process::id() % 60_000;
        let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let created = Namespaces {
            // The name of a device has at most 15 bytes.
            name: format!("l{id}c{cluster}"),
            nodes,
            subnet: format!("{}.{}", 16 + id / 250, id % 250),
        };
        let Namespaces { name, subnet, .. } = &created;
        ip(&format!("link add {name} type bridge"))?;
        ip(&format!("link set {name} up"))?;
        for n in 0..nodes {
            let address = n + 1;
            ip(&format!("netns add {name}-{n}"))?;
            ip(&format!(
                "link add {name}v{n} type veth peer name eth0 netns {name}-{n}"
            ))?;
            ip(&format!("link set {name}v{n} master {name} up"))?;
            ip(&format!(
                "-n {name}-{n} addr add 10.{subnet}.{address}/24 dev eth0"
            ))?;
            ip(&format!("-n {name}-{n} link set lo up"))?;
            ip(&format!("-n {name}-{n} link set eth0 up"))?;
        }
        Ok(created)
    }

    /// The address on which a node listens, with a free port.
    pub fn address(&self, node: usize) -> String {
        format!("10.{}.{}:7000", self.subnet, node + 1)
    }

    /// Runs a program in the namespace of a node.
    pub fn command(&self, node: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{node}", self.name)]);
        command
    }

    /// Takes the cable of a node out, or plugs it in again.
    pub fn set_link(&self, node: usize, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&format!("link set {}v{node} {state}", self.name))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The kernel removes the veth device of a namespace some time later. A call fails only if there is
        // nothing to delete.
        for n in 0..self.nodes {
            let _ = ip(&format!("netns del {}-{n}", self.name));
        }
        let _ = ip(&format!("link del {}", self.name));
    }
}

/// Runs `ip`.
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("ip {arguments}: {}", message.trim())))
}
