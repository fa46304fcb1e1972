//! Whether the machine has the memory for one more guest.
//!
//! A guest's memory is given as it touches it, so more may be promised than there is; but a start that would make the kernel
//! look for a victim is refused, with a sentence that says what to do.

/// All guests together may be promised this many times the machine's memory.
const OVERCOMMIT: u64 = 4;
/// What a guest touches until its program runs, MiB.
const FIRST_MIB: u64 = 64;

/// The machine's memory, MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What could be given without making anything slow.
    pub available: u64,
}

impl Memory {
    /// As the kernel tells it; none when it does not.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mib = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
        };
        Some(Self { total: mib("MemTotal")?, available: mib("MemAvailable")? })
    }

    /// What is kept for the zone's services, MiB.
    fn reserve(self) -> u64 {
        (self.total / 32).clamp(64, 1024)
    }
}

/// Admits a guest of `wanted` MiB beside others that were promised `promised` MiB.
///
/// # Errors
/// Why not, for people.
pub fn admit(memory: Memory, promised: u64, wanted: u64) -> Result<(), String> {
    let needed = FIRST_MIB.min(wanted) + memory.reserve();
    if memory.available < needed {
        return Err(format!(
            "the machine has no memory for another container: {} MiB are left of {} MiB and {needed} MiB are needed; \
             stop a container first",
            memory.available, memory.total
        ));
    }
    if promised + wanted > memory.total * OVERCOMMIT {
        return Err(format!(
            "the running containers were promised {promised} MiB, and {wanted} MiB more would be over {OVERCOMMIT} times \
             the machine's {} MiB; stop a container first, or give this one less with --memory",
            memory.total
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_refused_when_memory_is_short_or_too_much_is_promised() {
        let memory = |available| Memory { total: 4096, available };
        assert_eq!(admit(memory(3000), 0, 512), Ok(()));
        assert_eq!(admit(memory(3000), 8192, 8192), Ok(()));
        let short = admit(memory(150), 0, 512).unwrap_err();
        assert!(short.contains("150 MiB are left of 4096 MiB and 192 MiB are needed"), "{short}");
        let many = admit(memory(3000), 16_000, 512).unwrap_err();
        assert!(many.contains("promised 16000 MiB") && many.contains("4 times the machine's 4096 MiB"), "{many}");
    }

    #[test]
    fn the_kernels_numbers_are_read() {
        let text = "MemTotal:        4096000 kB\nMemFree: 1 kB\nMemAvailable:    2048000 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total: 4000, available: 2000 }));
        assert_eq!(Memory::parse("MemTotal: x"), None);
        assert!(Memory::now().is_some_and(|m| m.total >= m.available));
    }
}
