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

/// A mapping: where, and what it costs.
#[derive(Clone, Copy, Debug, Default)]
struct Area {
    start: u64,
    end: u64,
    own: Own,
}

fn sum(smaps: &str, guest_kib: u64) -> Own {
    let areas = areas(smaps);
    let guest = guest(&areas, guest_kib * 1024);
    let mut own = Own::default();
    for area in areas.iter().filter(|area| guest.is_none_or(|(start, end)| area.start < start || area.end > end)) {
        own.pss_kib += area.own.pss_kib;
        own.private_dirty_kib += area.own.private_dirty_kib;
    }
    own
}

fn areas(smaps: &str) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let bounds = name
            .split_once('-')
            .and_then(|(start, end)| Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?)));
        if let Some((start, end)) = bounds {
            areas.push(Area { start, end, own: Own::default() });
        } else if let (Some(area), Ok(kib)) = (areas.last_mut(), value.parse::<u64>()) {
            match name {
                "Pss:" => area.own.pss_kib = kib,
                "Private_Dirty:" => area.own.private_dirty_kib = kib,
                _ => {}
            }
        }
    }
    areas
}

/// The guest's memory: a mapping of its size, or several without a gap between them.
fn guest(areas: &[Area], bytes: u64) -> Option<(u64, u64)> {
    (0..areas.len()).find_map(|first| {
        let start = areas[first].start;
        let mut end = start;
        for area in &areas[first..] {
            if area.start != end || end - start >= bytes {
                break;
            }
            end = area.end;
        }
        (end - start == bytes).then_some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::{Own, sum};

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "1000-3000 rw-p 0 00:00 0\nSize: 8 kB\nPss: 9000 kB\nPrivate_Dirty: 9000 kB\n\
                     3000-5000 rw-p 0 00:00 0 /t/mem\nSize: 8 kB\nPss: 70 kB\nPrivate_Dirty: 70 kB\n\
                     7000-8000 rw-p 0 00:00 0\nSize: 4 kB\nPss: 20 kB\nPrivate_Dirty: 16 kB\n";
        assert_eq!(sum(smaps, 16), Own { pss_kib: 20, private_dirty_kib: 16 });
    }
}
