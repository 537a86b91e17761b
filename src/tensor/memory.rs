//! The memory that is left, so that a tensor past it is an error and not the end of the process: the system promises more
//! than it has and kills who uses it.

/// Bytes that are never asked about.
const SMALL: usize = 64 << 20;

/// What a file of the system says of the memory that is left; `None` where there is no such file.
fn available() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<usize>().ok();
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    let machine = machine(&read("/proc/meminfo")?)?;
    Some(group.map_or(machine, |(max, used)| machine.min(max.saturating_sub(used))))
}

fn machine(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Whether so many bytes can be had now.
pub fn fits_memory(bytes: usize) -> bool {
    bytes < SMALL || (isize::try_from(bytes).is_ok() && available().is_none_or(|left| bytes <= left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_in_kilobytes() {
        assert_eq!(machine("MemFree: 1 kB\nMemAvailable:       16 kB\n"), Some(16384));
        assert_eq!(machine(""), None);
        assert!(!fits_memory(usize::MAX));
    }
}
