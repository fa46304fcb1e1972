//! A container's processes, as `ps` would show them.

use crate::container::Container;
use crate::user::Users;
use serde_json::{Value, json};
use std::fs;

/// Clock ticks a second, on every Linux there is.
const HERTZ: u64 = 100;

/// One process, from /proc.
#[derive(Debug, Default)]
struct Process {
    pid: u32,
    user: String,
    ppid: u64,
    state: String,
    tty: u64,
    ticks: u64,
    start_ticks: u64,
    virtual_kib: u64,
    resident_kib: u64,
    name: String,
    command: String,
}

/// Docker's ContainerTopResponse. Of `ps`' arguments `-ef` (the default), `aux` and `-o` columns are understood; other ones are as `-ef`.
pub fn top(container: &Container, arguments: &str) -> Value {
    let columns = columns(arguments);
    let users = Users::read(&container.rootfs.root);
    let uptime = uptime_s();
    let pids = container
        .cgroup
        .as_ref()
        .map_or_else(|| vec![container.state().pid.unsigned_abs()], crate::cgroup::Cgroup::processes);
    let mut processes: Vec<Process> = pids.into_iter().filter_map(|pid| read(pid, &users)).collect();
    processes.sort_by_key(|p| p.pid);
    let rows: Vec<Vec<String>> =
        processes.iter().map(|p| columns.iter().map(|(_, key)| cell(p, key, uptime)).collect()).collect();
    let titles: Vec<&str> = columns.iter().map(|(title, _)| title.as_str()).collect();
    json!({"Titles": titles, "Processes": rows})
}

fn columns(arguments: &str) -> Vec<(String, String)> {
    let pair = |(title, key): &(&str, &str)| ((*title).to_owned(), (*key).to_owned());
    let words: Vec<&str> = arguments.split_whitespace().collect();
    if let Some(list) =
        words.iter().position(|w| *w == "-o" || w.ends_with('o') && w.starts_with('-')).and_then(|i| words.get(i + 1))
    {
        let title = |key: &str| match key {
            "args" | "cmd" => "COMMAND".to_owned(),
            "user" | "uid" | "pid" | "ppid" | "tty" | "time" | "comm" | "rss" | "vsz" | "stat" | "stime" => {
                key.to_uppercase()
            }
            "pcpu" => "%CPU".to_owned(),
            "pmem" => "%MEM".to_owned(),
            other => other.to_uppercase(),
        };
        return list
            .split(',')
            .map(|item| {
                item.split_once('=')
                    .map_or_else(|| (title(item), item.to_owned()), |(k, t)| (t.to_owned(), k.to_owned()))
            })
            .collect();
    }
    if words.first().is_some_and(|w| w.trim_start_matches('-').contains('a') && w.contains('u')) {
        let all = [
            ("USER", "user"),
            ("PID", "pid"),
            ("%CPU", "pcpu"),
            ("%MEM", "pmem"),
            ("VSZ", "vsz"),
            ("RSS", "rss"),
            ("TTY", "tty"),
            ("STAT", "stat"),
            ("START", "stime"),
            ("TIME", "time"),
            ("COMMAND", "args"),
        ];
        return all.iter().map(pair).collect();
    }
    let all = [
        ("UID", "user"),
        ("PID", "pid"),
        ("PPID", "ppid"),
        ("C", "c"),
        ("STIME", "stime"),
        ("TTY", "tty"),
        ("TIME", "time"),
        ("CMD", "args"),
    ];
    all.iter().map(pair).collect()
}

fn cell(process: &Process, key: &str, uptime_s: u64) -> String {
    let seconds = process.ticks / HERTZ;
    let age_s = uptime_s.saturating_sub(process.start_ticks / HERTZ).max(1);
    match key {
        "user" | "uid" | "ruser" | "euser" => process.user.clone(),
        "pid" => process.pid.to_string(),
        "ppid" => process.ppid.to_string(),
        "c" => (seconds * 100 / age_s).to_string(),
        "pcpu" | "%cpu" => format!("{:.1}", (process.ticks * 100) as f64 / (age_s * HERTZ) as f64),
        "pmem" | "%mem" => "0.0".to_owned(),
        "stime" | "start" => {
            let started_ns = crate::log::now_ns().saturating_sub(age_s * 1_000_000_000);
            crate::stats::rfc3339(started_ns).get(11..16).unwrap_or_default().to_owned()
        }
        "tty" | "tt" | "tname" => terminal_name(process.tty),
        "time" | "cputime" => format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        "vsz" => process.virtual_kib.to_string(),
        "rss" => process.resident_kib.to_string(),
        "stat" | "state" | "s" => process.state.clone(),
        "comm" | "ucmd" => process.name.clone(),
        "args" | "cmd" | "command" => process.command.clone(),
        _ => "-".to_owned(),
    }
}

/// The device number of a pseudo terminal as its name.
fn terminal_name(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

fn uptime_s() -> u64 {
    fs::read_to_string("/proc/uptime").unwrap_or_default().split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn read(pid: u32, users: &Users) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    let mut process = parse_stat(&stat)?;
    process.pid = pid;
    process.user = users.name_of(uid);
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    process.command = if text.is_empty() { format!("[{}]", process.name) } else { text };
    Some(process)
}

/// /proc/PID/stat; the name may contain spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat.get(close + 1..)?.split_whitespace().collect();
    // Field 3 of proc(5) is the first here.
    let number = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Some(Process {
        name: stat.get(open + 1..close)?.to_owned(),
        state: (*fields.first()?).to_owned(),
        ppid: number(4),
        tty: number(7),
        ticks: number(14) + number(15),
        start_ticks: number(22),
        virtual_kib: number(23) / 1024,
        resident_kib: number(24) * 4,
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(arguments: &str) -> String {
        columns(arguments).into_iter().map(|(title, _)| title).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn arguments_choose_the_columns() {
        assert_eq!(titles(""), "UID PID PPID C STIME TTY TIME CMD");
        assert_eq!(titles("-ef"), titles(""));
        assert!(titles("aux").starts_with("USER PID %CPU"));
        assert_eq!(titles("-eo pid,comm"), "PID COMM");
        assert_eq!(titles("-o pid=P,args"), "P COMMAND");
    }

    #[test]
    fn a_name_may_contain_anything() {
        let process =
            parse_stat("7 (a) b (c)) S 1 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 0 1 0 4000 1048576 100 0").unwrap();
        assert_eq!(
            (process.name.as_str(), process.ppid, process.ticks, process.start_ticks),
            ("a) b (c)", 1, 200, 4000)
        );
        assert_eq!(terminal_name(process.tty), "pts/0");
        assert_eq!((process.virtual_kib, process.resident_kib), (1024, 400));
    }
}
