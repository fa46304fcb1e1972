//! Whom the payload runs as. Names are looked up in the host's /etc/passwd and /etc/group, which is where systemd-sysusers
//! puts the zone's users; other name services are not asked.

use super::RunError;
use crate::error::{Error, Result};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::path::Path;

/// Resolved ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Resolves `USER[:GROUP]` (empty: root) and the supplementary groups on this host.
    ///
    /// # Errors
    /// `Invalid` for a name that is not there.
    pub fn resolve(user: &str, groups: &[String]) -> Result<Self> {
        let read = |path: &str| {
            // A host without the file has no names, but numbers still work.
            std::fs::read_to_string(Path::new(path)).unwrap_or_default()
        };
        Self::resolve_in(user, groups, &read("/etc/passwd"), &read("/etc/group"))
    }

    fn resolve_in(user: &str, groups: &[String], passwd: &str, group: &str) -> Result<Self> {
        let (user, user_group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
        let user = if user.is_empty() { "0" } else { user };
        let missing = |what: &str, name: &str| Error::Invalid(format!("there is no {what} {name:?} on this machine"));
        let entry = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() > 3 && (fields[0] == user || fields[2] == user));
        let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let (uid, own_group) = match entry {
            Some(fields) => (number(fields[2]), number(fields[3])),
            None => (number(user), number(user)),
        };
        let uid = uid.ok_or_else(|| missing("user", user))?;
        let find_group = |name: &str| {
            let named =
                group.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f.len() > 2 && f[0] == name);
            named.map_or_else(|| number(name), |fields| number(fields[2])).ok_or_else(|| missing("group", name))
        };
        let gid = match user_group {
            Some(name) => find_group(name)?,
            None => own_group.ok_or_else(|| missing("group of user", user))?,
        };
        Ok(Self { uid, gid, groups: groups.iter().map(|name| find_group(name)).collect::<Result<_>>()? })
    }

    /// Becomes this user; permitted capabilities stay, effective ones are gone unless it is root.
    ///
    /// # Errors
    /// `Step` when we are not root.
    pub(super) fn assume(&self) -> Result<(), RunError> {
        let failed = || RunError::step(format!("become user {} group {}", self.uid, self.gid));
        let groups: Vec<Gid> = self.groups.iter().map(|id| Gid::from_raw(*id)).collect();
        set_thread_groups(&groups).map_err(failed())?;
        let gid = Gid::from_raw(self.gid);
        set_thread_res_gid(gid, gid, gid).map_err(failed())?;
        set_keep_capabilities(true).map_err(failed())?;
        let uid = Uid::from_raw(self.uid);
        set_thread_res_uid(uid, uid, uid).map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nkraud-vpc:x:901:801::/:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nkraud:x:800:\nkraud-vpc:x:801:\n";

    #[test]
    fn names_and_numbers_are_resolved_on_the_host() {
        for (user, groups, expected) in [
            ("", vec![], (0, 0, vec![])),
            ("kraud-vpc", vec!["kraud"], (901, 801, vec![800])),
            ("kraud-vpc:kraud", vec!["7"], (901, 800, vec![7])),
            ("901", vec![], (901, 801, vec![])),
            ("200001", vec![], (200_001, 200_001, vec![])),
            ("5:6", vec![], (5, 6, vec![])),
        ] {
            let groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
            let found = Identity::resolve_in(user, &groups, PASSWD, GROUP).unwrap();
            assert_eq!((found.uid, found.gid, found.groups), expected, "{user}");
        }
    }

    #[test]
    fn unknown_names_are_refused_and_never_become_root() {
        for (user, group) in
            [("nobody-here", "kraud"), ("root:nogroup", "kraud"), ("root", "nogroup"), ("4294967295", "kraud")]
        {
            assert!(Identity::resolve_in(user, &[group.to_owned()], PASSWD, GROUP).is_err(), "{user} {group}");
        }
    }
}
