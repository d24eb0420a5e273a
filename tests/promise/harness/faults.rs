//! The faults: each happens once, is over within a few seconds, and leaves all nodes up.

use std::io::Result;
use std::time::Duration;

use super::cluster::Cluster;
use super::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The requests to one node are delayed by 0 to 200 ms.
    Delay,
    /// One node is cut off from all others. With manual clocks, 5 minutes pass meanwhile.
    Cut,
    /// The only node that removes is killed with SIGKILL.
    KillRemover,
    /// A node that owns a part of the keys and removes none is killed with SIGKILL.
    KillOwner,
    /// A node is killed, and reads a dump back that is older than some removals.
    Restore,
    /// A node leaves the list and joins it again: keys move, and values with them.
    Ring,
    /// A node is stopped with SIGSTOP, so that the next replicas load its keys. Its clock goes on, as
    /// in a suspend.
    Stop,
}

impl Fault {
    pub const ALL: [Fault; 7] = [
        Fault::Delay,
        Fault::Cut,
        Fault::KillRemover,
        Fault::KillOwner,
        Fault::Restore,
        Fault::Ring,
        Fault::Stop,
    ];

    /// Lets the fault happen to a node that is chosen at random.
    pub fn happen(self, cluster: &mut Cluster<'_>, random: &mut Random) -> Result<()> {
        let node = random.below(cluster.nodes() as u64) as usize;
        let some = Duration::from_millis(300 + random.below(500));
        match self {
            Fault::Delay => {
                cluster.delay(node, 200)?;
                cluster.wait(4 * some)?;
                cluster.delay(node, 0)
            }
            Fault::Cut => {
                let storms = random.below(2) == 0;
                cut(cluster, node, some, storms)
            }
            Fault::KillRemover => {
                cluster.set_all_changing(false)?;
                cluster.set_changing(node, true)?;
                kill(cluster, node, some, false)?;
                cluster.set_all_changing(true)
            }
            Fault::KillOwner => {
                cluster.set_changing(node, false)?;
                kill(cluster, node, some, false)
            }
            Fault::Restore => {
                // Without changes, the caches fill up before the dump.
                cluster.set_all_changing(false)?;
                cluster.wait(some)?;
                cluster.dump(node)?;
                cluster.set_all_changing(true)?;
                kill(cluster, node, some / 2, true)
            }
            Fault::Ring => {
                cluster.set_listed(node, false)?;
                cluster.wait(some)?;
                cluster.set_listed(node, true)?;
                cluster.wait(some)
            }
            Fault::Stop => {
                cluster.wait(some)?;
                stop(cluster, node, 4 * some)
            }
        }
    }
}

fn kill(cluster: &mut Cluster<'_>, node: usize, some: Duration, restores: bool) -> Result<()> {
    cluster.wait(some)?;
    cluster.kill(node);
    cluster.wait(some)?;
    cluster.restart(node, restores)?;
    cluster.wait(some)
}

fn cut(cluster: &mut Cluster<'_>, node: usize, some: Duration, storms: bool) -> Result<()> {
    cluster.set_cut(node, true)?;
    cluster.wait(cut_time().unwrap_or(2 * some))?;
    if storms {
        cluster.storm((node + 1) % cluster.nodes(), 10_000)?;
    }
    // The clocks of the nodes move one after the other. A removal meanwhile would be older at one node than at
    // another one.
    cluster.set_all_changing(false)?;
    cluster.advance(Duration::from_secs(5 * 60))?;
    cluster.set_all_changing(true)?;
    cluster.wait(some)?;
    // From now on only the repair removes what the node missed.
    cluster.set_all_changing(false)?;
    cluster.set_cut(node, false)?;
    cluster.wait(REPAIR)?;
    cluster.set_all_changing(true)
}

fn stop(cluster: &mut Cluster<'_>, node: usize, time: Duration) -> Result<()> {
    cluster.stop(node)?;
    cluster.wait(time)?;
    for other in (0..cluster.nodes()).filter(|&other| other != node) {
        cluster.set_changing(other, false)?;
    }
    cluster.resume(node)?;
    cluster.set_changing(node, false)?;
    cluster.wait(REPAIR)?;
    cluster.set_all_changing(true)
}

/// How long a node is cut off, if the environment variable is set.
fn cut_time() -> Option<Duration> {
    let seconds = std::env::var("LARDER_PROMISE_CUT_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("a number")))
}

/// The node is asked again after a second or two. After that, it repairs itself within a second.
const REPAIR: Duration = Duration::from_millis(3500);
