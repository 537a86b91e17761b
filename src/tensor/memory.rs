//! The memory that is left, so that a tensor past it is an error and not the end of the process: the system promises more
//! than it has and kills who uses it.

/// Bytes that are never asked about.
const SMALL: usize = 64 << 20;

/// Memory in bytes: what there is, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    all: usize,
    left: usize,
}

/// The memory of the machine, and that of this process's group where that is limited; none where the system does not say.
fn limits() -> impl Iterator<Item = Memory> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<usize>().ok();
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    let group = group.map(|(all, used)| Memory { all, left: all.saturating_sub(used) });
    let machine = read("/proc/meminfo").and_then(|text| machine(&text));
    machine.into_iter().chain(group)
}

fn machine(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
    };
    Some(Memory { all: bytes("MemTotal:")?, left: bytes("MemAvailable:")? })
}

/// Whether so many bytes can be had now.
pub fn fits_memory(bytes: usize) -> bool {
    bytes < SMALL || (isize::try_from(bytes).is_ok() && limits().all(|m| bytes <= m.left))
}

/// Whether a quarter of all memory is left when so many bytes are taken; false where nobody knows.
#[cfg(target_os = "linux")]
pub(super) fn plenty(bytes: usize) -> bool {
    let mut known = false;
    limits().inspect(|_| known = true).all(|m| m.left.saturating_sub(bytes) >= m.all / 4) && known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_in_kilobytes() {
        let text = "MemTotal: 20 kB\nMemFree: 1 kB\nMemAvailable:       16 kB\n";
        assert_eq!(machine(text), Some(Memory { all: 20480, left: 16384 }));
        assert_eq!(machine("MemTotal: 20 kB\n"), None);
        assert!(!fits_memory(usize::MAX));
    }
}
