//! Parses the files in which Linux reports memory. All functions are pure, and accept any text.

/// The cgroups of a process, from `/proc/self/cgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CgroupPaths {
    /// In the hierarchy of version 2.
    pub(crate) v2: Option<String>,
    /// In the hierarchy of version 1 that has the memory controller.
    pub(crate) v1: Option<String>,
}

/// Parses lines such as `0::/user.slice` and `4:memory:/user.slice`.
pub(crate) fn cgroup_paths(text: &str) -> CgroupPaths {
    let mut paths = CgroupPaths::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if id == "0" && controllers.is_empty() {
            paths.v2 = Some(path.to_owned());
        } else if controllers.split(',').any(|name| name == "memory") {
            paths.v1 = Some(path.to_owned());
        }
    }
    paths
}

/// A mounted cgroup hierarchy that reports memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupMount {
    pub(crate) is_v2: bool,
    /// The cgroup that is mounted: the top of the container, or `/`.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) point: String,
}

impl CgroupMount {
    /// The folders of a cgroup and of the cgroups above it, as far as they are mounted.
    pub(crate) fn folders(&self, path: &str) -> Vec<String> {
        let root = self.root.trim_end_matches('/');
        let below = path.strip_prefix(root);
        // Outside of what is mounted, the limits of the mounted cgroup still apply.
        let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
        let names = below.unwrap_or_default().split('/');
        let mut folders = vec![self.point.clone()];
        for name in names.filter(|name| !name.is_empty()) {
            if name == ".." {
                break;
            }
            let parent = folders.last().map_or("", |parent| parent.as_str());
            folders.push(format!("{}/{name}", parent.trim_end_matches('/')));
        }
        folders.reverse();
        folders
    }
}

/// The mounts of cgroup hierarchies that report memory, from `/proc/self/mountinfo`.
pub(crate) fn cgroup_mounts(text: &str) -> Vec<CgroupMount> {
    text.lines().filter_map(cgroup_mount).collect()
}

/// Parses a line such as `36 35 0:31 /root /mount rw,noatime master:1 - cgroup cgroup rw,memory`. The
/// number of fields before the dash varies.
fn cgroup_mount(line: &str) -> Option<CgroupMount> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ');
    let kind = system.next()?;
    let mut options = system.nth(1)?.split(',');
    let is_v2 = kind == "cgroup2";
    if !is_v2 && (kind != "cgroup" || options.all(|option| option != "memory")) {
        return None;
    }
    Some(CgroupMount {
        is_v2,
        root: unescaped(root),
        point: unescaped(point),
    })
}

/// Replaces escapes such as `\040`, which stands for a space.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).map(|code| u8::from_str_radix(code, 8));
        match code {
            Some(Ok(code)) if code.is_ascii() => {
                text.push(char::from(code));
                text.push_str(&part[3..]);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

/// The bytes of a file such as `memory.max`; `None` for `max`, and for the huge numbers with which
/// version 1 reports that there is no limit.
pub(crate) fn limit(text: &str) -> Option<u64> {
    bytes(text).filter(|&bytes| bytes < UNLIMITED)
}

/// A limit from which on there is none: an exbibyte.
const UNLIMITED: u64 = 1 << 60;

/// The number of a file such as `memory.current`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The file pages that the system can drop at once, from `memory.stat`, in bytes: those of no mapping.
/// Version 1 counts the cgroups below in the fields named `total_`.
pub(crate) fn reclaimable(text: &str, is_v2: bool) -> u64 {
    let fields = if is_v2 {
        ["inactive_file", "active_file", "file_mapped"]
    } else {
        [
            "total_inactive_file",
            "total_active_file",
            "total_mapped_file",
        ]
    };
    let value = |name| field(text, name).and_then(bytes).unwrap_or(0);
    let [inactive, active, mapped] = fields.map(value);
    inactive.saturating_add(active).saturating_sub(mapped)
}

/// The whole memory and the available memory of the machine, from `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(text: &str) -> Option<(u64, u64)> {
    let value = |name| {
        let value = field(text, name)?.trim().strip_suffix(" kB")?;
        bytes(value)?.checked_mul(1024)
    };
    Some((value("MemTotal:")?, value("MemAvailable:")?))
}

/// The time that some task waited for memory, from a file such as `/proc/pressure/memory`, in
/// microseconds: `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`.
pub(crate) fn stalled(text: &str) -> Option<u64> {
    let some = field(text, "some")?;
    let total = some.split(' ').find_map(|item| item.strip_prefix("total="));
    bytes(total?)
}

/// The rest of the line that begins with this word.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(' ').then(|| &rest[1..])
    })
}

#[cfg(all(test, not(larder_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_of_both_versions_are_found() {
        let text = "5:devices:/\n4:cpu,memory:/a/b\n1:name=systemd:/\n0::/c:d\n";
        let paths = cgroup_paths(text);
        assert_eq!(paths.v1.as_deref(), Some("/a/b"));
        assert_eq!(paths.v2.as_deref(), Some("/c:d"));
    }

    #[test]
    fn mounts_that_report_memory_are_found() {
        let text = "\
            25 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 25 0:26 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
            31 25 0:27 /docker/x /sys/fs/my\\040cgroup rw - cgroup cgroup rw,memory\n\
            32 25 0:28 / /sys/fs/cgroup/unified rw shared:2 master:3 - cgroup2 none rw,nsdelegate\n";
        let mounts = cgroup_mounts(text);
        let [v1, v2] = &mounts[..] else {
            panic!("{mounts:?}");
        };
        assert!(!v1.is_v2 && v2.is_v2);
        assert_eq!((&*v1.root, &*v1.point), ("/docker/x", "/sys/fs/my cgroup"));
        assert_eq!((&*v2.root, &*v2.point), ("/", "/sys/fs/cgroup/unified"));
    }

    #[test]
    fn folders_lead_from_the_cgroup_to_the_mount() {
        let mount = |root: &str| CgroupMount {
            is_v2: true,
            root: root.into(),
            point: "/m".into(),
        };
        assert_eq!(mount("/").folders("/a/b"), ["/m/a/b", "/m/a", "/m"]);
        assert_eq!(mount("/").folders("/"), ["/m"]);
        assert_eq!(mount("/docker/x").folders("/docker/x/y"), ["/m/y", "/m"]);
        assert_eq!(mount("/docker/x").folders("/docker/xy"), ["/m"]);
        assert_eq!(mount("/").folders("/../other"), ["/m"]);
    }

    #[test]
    fn limits_and_figures_are_parsed() {
        assert_eq!(limit("33554432\n"), Some(32 << 20));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        let stat = "anon 5\nfile 90\nactive_file 30\ninactive_file 60\nfile_mapped 20\n";
        assert_eq!(reclaimable(stat, true), 70);
        assert_eq!(reclaimable(stat, false), 0);
        let info = "MemTotal:       1024 kB\nMemFree: 1 kB\nMemAvailable:    512 kB\n";
        assert_eq!(meminfo(info), Some((1 << 20, 1 << 19)));
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1104575\nfull total=7\n";
        assert_eq!(stalled(pressure), Some(1_104_575));
    }

    proptest! {
        #[test]
        fn any_text_is_accepted(text in "(some|0::|memory|total=|[0-9 :/\\\\\n.-]|\\PC)*") {
            check(&text);
        }
    }
}

/// Runs all parsers on any text.
#[cfg(any(all(test, not(larder_loom)), larder_fuzz))]
pub(crate) fn check(text: &str) {
    let paths = cgroup_paths(text);
    for mount in cgroup_mounts(text) {
        for path in paths.v1.iter().chain(&paths.v2) {
            let folders = mount.folders(path);
            assert_eq!(folders.last(), Some(&mount.point));
            // The system names a mount's own folder, which may be any text here.
            let own = mount.point.trim_end_matches('/');
            let is_inside = |folder: &String| {
                let below = folder.strip_prefix(own);
                below.is_some_and(|below| !below.contains("/../"))
            };
            assert!(folders.iter().all(is_inside));
        }
    }
    assert!(limit(text).is_none_or(|limit| limit < UNLIMITED));
    reclaimable(text, true);
    reclaimable(text, false);
    meminfo(text);
    stalled(text);
}
