//! Signals by name or number.

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `SIGRTMAX-1`; empty is SIGKILL, as for `docker kill`.
pub fn parse(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(libc::SIGKILL);
    }
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|n| *n == name) {
        return i32::try_from(index).ok().map(|i| i + 1);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RT_MIN + offset(rest)?,
        (_, Some(rest)) => RT_MAX + offset(rest)?,
        _ if name == "CLD" => libc::SIGCHLD,
        _ if name == "POLL" => libc::SIGIO,
        _ if name == "IOT" => libc::SIGABRT,
        _ => return None,
    };
    (1..=RT_MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in [
            ("", Some(9)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGWINCH", Some(28)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-14", Some(50)),
            ("SIGRTMIN", Some(34)),
            ("SIGNOPE", None),
            ("0", None),
            ("65", None),
            ("-9", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
