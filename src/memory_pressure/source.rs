//! Reads the memory of the process's cgroups and of the machine from Linux's files.

use std::fs;
use std::path::{Path, PathBuf};

use super::decide::{Level, PressureReading};
use super::parse::{self, CgroupMount, CgroupPaths};
use crate::error::{Error, ErrorKind, Result};

/// The files to read.
#[derive(Debug, Default)]
pub(super) struct PressureSource {
    mounts: Vec<CgroupMount>,
    paths: CgroupPaths,
    /// The cgroups that the process is in, and those above them.
    cgroups: Vec<Cgroup>,
}

#[derive(Debug)]
struct Cgroup {
    folder: PathBuf,
    is_v2: bool,
}

impl PressureSource {
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if the system reports no memory at all.
    pub(super) fn new() -> Result<PressureSource> {
        if !cfg!(target_os = "linux") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "memory pressure is watched on Linux only",
            ));
        }
        let mounts = read("/proc/self/mountinfo").unwrap_or_default();
        let mut source = PressureSource {
            mounts: parse::cgroup_mounts(&mounts),
            ..PressureSource::default()
        };
        if source.read().levels.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "neither a cgroup nor /proc/meminfo reports the memory of this process",
            ));
        }
        Ok(source)
    }

    /// The memory now. Files that cannot be read are left out.
    pub(super) fn read(&mut self) -> PressureReading {
        self.find_cgroups();
        let mut levels: Vec<Level> = self.cgroups.iter().filter_map(Cgroup::level).collect();
        let machine = read("/proc/meminfo").and_then(|text| parse::meminfo(&text));
        let is_machine_full = machine.is_none_or(|(total, available)| available < total / 4);
        levels.extend(machine.map(|(total, available)| Level {
            limit: total,
            used: total.saturating_sub(available),
        }));
        let own = self.cgroups.iter().find_map(Cgroup::stalled);
        // Waits anywhere on the machine concern this process only if the machine is short of memory.
        // Otherwise other cgroups wait at limits of their own.
        let anywhere = || {
            let pressure = read("/proc/pressure/memory").filter(|_| is_machine_full)?;
            parse::stalled(&pressure)
        };
        PressureReading {
            levels,
            stalled: own.or_else(anywhere),
        }
    }

    /// Finds the cgroups again if the process has moved.
    fn find_cgroups(&mut self) {
        let text = read("/proc/self/cgroup").unwrap_or_default();
        let paths = parse::cgroup_paths(&text);
        if paths == self.paths {
            return;
        }
        self.cgroups.clear();
        for mount in &self.mounts {
            let path = if mount.is_v2 { &paths.v2 } else { &paths.v1 };
            let folders = path.iter().flat_map(|path| mount.folders(path));
            self.cgroups.extend(folders.map(|folder| Cgroup {
                folder: folder.into(),
                is_v2: mount.is_v2,
            }));
        }
        self.paths = paths;
    }
}

impl Cgroup {
    /// `None` without a limit, or if the cgroup does not count memory.
    fn level(&self) -> Option<Level> {
        let (limits, used): (&[&str], &str) = if self.is_v2 {
            (&["memory.max", "memory.high"], "memory.current")
        } else {
            (&["memory.limit_in_bytes"], "memory.usage_in_bytes")
        };
        let limits = limits
            .iter()
            .filter_map(|name| parse::limit(&self.read(name)?));
        let limit = limits.min()?;
        let used = parse::bytes(&self.read(used)?)?;
        let stat = self.read("memory.stat").unwrap_or_default();
        Some(Level {
            limit,
            used: used.saturating_sub(parse::reclaimable(&stat, self.is_v2)),
        })
    }

    fn stalled(&self) -> Option<u64> {
        parse::stalled(&self.read("memory.pressure").filter(|_| self.is_v2)?)
    }

    fn read(&self, name: &str) -> Option<String> {
        read(self.folder.join(name))
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}
