//! The time since the boot, which tells how long a process was down.

/// Which boot of which machine this is, and the time since then.
pub(crate) struct Uptime {
    /// Empty where the system does not tell.
    pub(crate) boot_id: String,
    /// In nanoseconds, suspended time included.
    pub(crate) since_boot: u64,
}

impl Uptime {
    /// Reads both from `/proc` (Linux). Elsewhere, the wall clock has to do.
    pub(crate) fn now() -> Uptime {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let uptime = read("/proc/uptime");
        let seconds = uptime
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok());
        let boot_id = read("/proc/sys/kernel/random/boot_id");
        let is_known = seconds.is_some();
        Uptime {
            boot_id: if is_known {
                boot_id.trim().to_owned()
            } else {
                String::new()
            },
            since_boot: (seconds.unwrap_or(0.0) * 1e9) as u64,
        }
    }
}
