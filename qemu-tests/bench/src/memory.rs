//! What a monitor costs beside the guest's memory: its mappings without the guest's (proc(5), smaps).

use anyhow::{Context as _, Result};

/// Memory of a process, KiB, without mappings as large as the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Its share of what it uses.
    pub pss_kib: u64,
    /// What only it has and has written.
    pub private_dirty_kib: u64,
}

/// Reads a process's own memory.
///
/// # Errors
/// When the process is gone.
pub fn own(pid: u32, guest_kib: u64) -> Result<Own> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("read the memory of process {pid}"))?;
    Ok(sum(&smaps, guest_kib))
}

fn sum(smaps: &str, guest_kib: u64) -> Own {
    let mut own = Own::default();
    let mut counts = true;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let Ok(kib) = value.parse::<u64>() else { continue };
        match name {
            "Size:" => counts = kib < guest_kib,
            "Pss:" if counts => own.pss_kib += kib,
            "Private_Dirty:" if counts => own.private_dirty_kib += kib,
            _ => {}
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::{Own, sum};

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "a-b rw-p 0 00:00 0\nSize: 131072 kB\nPss: 9000 kB\nPrivate_Dirty: 9000 kB\n\
                     c-d rw-p 0 00:00 0\nSize: 132 kB\nPss: 20 kB\nPrivate_Dirty: 16 kB\n";
        assert_eq!(sum(smaps, 131_072), Own { pss_kib: 20, private_dirty_kib: 16 });
    }
}
