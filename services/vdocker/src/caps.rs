//! Capabilities: Docker's default set, what a container gets.

use zone::capability;

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps(pub u64);

/// All of them; higher ones of a newer kernel are dropped.
pub const ALL: Caps = Caps((1 << capability::COUNT) - 1);

/// A name that the kernel does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid capability: {0:?}: use a name like NET_ADMIN, or ALL")]
pub struct UnknownCap(pub String);

fn parse(name: &str) -> Result<Caps, UnknownCap> {
    if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
        return Ok(ALL);
    }
    capability::number(name).map(|bit| Caps(1 << bit)).ok_or_else(|| UnknownCap(name.to_owned()))
}

/// What a container gets: the default set (all when ALL is added), plus what is added, less what is dropped. With ALL
/// dropped, only what is added by name.
///
/// # Errors
/// When a name is unknown.
pub fn effective(privileged: bool, add: &[String], drop: &[String]) -> Result<Caps, UnknownCap> {
    if privileged {
        return Ok(ALL);
    }
    let all = |names: &[String]| names.iter().any(|n| parse(n) == Ok(ALL));
    let mut set: u64 = if all(drop) {
        0
    } else if all(add) {
        ALL.0
    } else {
        DEFAULT.iter().filter_map(|n| parse(n).ok()).fold(0, |s, c| s | c.0)
    };
    if !all(drop) {
        for name in drop {
            set &= !parse(name)?.0;
        }
    }
    for name in add {
        let cap = parse(name)?;
        if cap != ALL {
            set |= cap.0;
        }
    }
    Ok(Caps(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> u64 {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        effective(false, &owned(add), &owned(drop)).unwrap().0
    }

    #[test]
    fn the_default_set_is_dockers() {
        // CapBnd of a container of the reference engine.
        assert_eq!(set(&[], &[]), 0xa804_25fb);
    }

    #[test]
    fn additions_and_drops_apply_in_dockers_order() {
        assert_eq!(set(&["NET_ADMIN"], &["ALL"]), 1 << 12);
        assert_eq!(set(&["ALL"], &["CAP_SYS_ADMIN"]), ALL.0 & !(1 << 21));
        assert_eq!(set(&["cap_net_admin"], &["chown"]), (0xa804_25fb | 1 << 12) & !1);
        assert_eq!(effective(true, &[], &["ALL".into()]), Ok(ALL));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert_eq!(effective(false, &["FLY".into()], &[]), Err(UnknownCap("FLY".into())));
    }
}
