//! A network device whose packets this program carries: late, or not at all. Needs root.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::namespaces::{Namespaces, ip};

/// The network device of a node. The threads that carry its packets end with its namespace.
#[derive(Default)]
pub struct UserLink {
    /// The delay of each packet, in either direction, in milliseconds.
    pub delay: AtomicU64,
    /// The packets that are lost, of 100 in either direction.
    pub lost: AtomicU64,
}

impl UserLink {
    /// Replaces the device of a node.
    pub fn replace(namespaces: &Namespaces, node: usize) -> Result<Arc<UserLink>> {
        let bridge = &namespaces.name;
        let (outer, inner) = (format!("{bridge}o"), format!("{bridge}i"));
        let space = format!("{bridge}-{node}");
        let address = namespaces.address(node);
        let (address, _) = address.split_once(':').expect("a port");
        ip(&format!("link del {bridge}v{node}"))?;
        let [outside, inside] = [open(&outer)?, open(&inner)?];
        ip(&format!("link set {outer} master {bridge} up"))?;
        ip(&format!("link set {inner} netns {space} name eth0"))?;
        ip(&format!("-n {space} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {space} link set eth0 up"))?;
        let link = Arc::new(UserLink::default());
        let ends = (outside.try_clone()?, inside.try_clone()?);
        for (from, to) in [(outside, inside), (ends.1, ends.0)] {
            link.carry(from, to);
        }
        Ok(link)
    }

    /// Carries packets in one direction, in their order.
    fn carry(self: &Arc<Self>, mut from: File, mut to: File) {
        let (sender, packets) = mpsc::channel::<(Instant, Vec<u8>)>();
        thread::spawn(move || {
            for (due, packet) in packets {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // The write fails while the device is down. Then the packet is lost.
                let _ = to.write(&packet);
            }
        });
        let link = self.clone();
        thread::spawn(move || {
            let mut random = 1_u64;
            let mut packet = [0; 2048];
            // The read fails once the device is gone.
            while let Ok(len) = from.read(&mut packet) {
                random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                if (random >> 33) % 100 < link.lost.load(Relaxed) {
                    continue;
                }
                let due = Instant::now() + Duration::from_millis(link.delay.load(Relaxed));
                if sender.send((due, packet[..len].to_vec())).is_err() {
                    return;
                }
            }
        });
    }
}

/// Makes an Ethernet device whose packets are read and written here.
fn open(name: &str) -> Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // `struct ifreq`: the name, then the flags.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes one `ifreq`, which is not larger than the array.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(device),
        _ => Err(Error::last_os_error()),
    }
}
