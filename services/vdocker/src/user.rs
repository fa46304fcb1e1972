//! Users and groups of a container, from its own /etc/passwd and /etc/group.

use crate::inroot::InRoot;
use std::path::Path;

/// Larger files are not read: no image has them, and they would be parsed at each exec.
const MAX_FILE: u64 = 4 << 20;

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// More groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The user or a group is not there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Docker's words.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    /// Docker's words.
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
}

/// The two files.
#[derive(Debug, Default)]
pub struct Users {
    passwd: String,
    group: String,
}

impl Users {
    /// Reads them; a file that is absent is empty.
    pub fn read(root: &InRoot) -> Self {
        let text = |path: &str| String::from_utf8_lossy(&root.read_small(Path::new(path), MAX_FILE)).into_owned();
        Self { passwd: text("/etc/passwd"), group: text("/etc/group") }
    }

    /// Resolves `USER[:GROUP]` with more groups; an empty user is root.
    ///
    /// # Errors
    /// When a name is not there; numbers need not be.
    pub fn resolve(&self, user: &str, more: &[String]) -> Result<Identity, UserError> {
        let (name, group) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
        let mut identity = self.user(if name.is_empty() { "0" } else { name })?;
        if let Some(group) = group.filter(|g| !g.is_empty()) {
            // A group that is named replaces the ones that the user is in, as Docker does it.
            identity.gid = self.group(group)?;
            identity.groups.clear();
        }
        for group in more {
            let id = self.group(group)?;
            if !identity.groups.contains(&id) {
                identity.groups.push(id);
            }
        }
        Ok(identity)
    }

    fn user(&self, user: &str) -> Result<Identity, UserError> {
        let number = user.parse::<u32>().ok();
        for line in self.passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else { continue };
            let (Ok(uid), Ok(gid)) = (uid.parse::<u32>(), gid.parse::<u32>()) else { continue };
            if name == user || number == Some(uid) {
                let home = fields.get(5).copied().filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
                return Ok(Identity { uid, gid, groups: self.groups_of(name, gid), home });
            }
        }
        let uid = number.ok_or_else(|| UserError::User(user.to_owned()))?;
        let home = if uid == 0 { "/root" } else { "/" };
        Ok(Identity { uid, gid: 0, groups: Vec::new(), home: home.to_owned() })
    }

    fn groups_of(&self, user: &str, gid: u32) -> Vec<u32> {
        let mut ids = vec![gid];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let (Some(id), Some(members)) = (fields.nth(2).and_then(|g| g.parse().ok()), fields.next()) else {
                continue;
            };
            if members.split(',').any(|m| m == user) && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn group(&self, group: &str) -> Result<u32, UserError> {
        let by_name = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(group)).then(|| fields.nth(1).and_then(|g| g.parse().ok())).flatten()
        });
        by_name.or_else(|| group.parse().ok()).ok_or_else(|| UserError::Group(group.to_owned()))
    }

    /// A user's name, or its number when it has none.
    pub fn name_of(&self, uid: u32) -> String {
        let text = uid.to_string();
        self.passwd
            .lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1) == Some(text.as_str())).then(|| name.to_owned())
            })
            .unwrap_or(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34::/var/www:/bin/false\n".into(),
            group: "root:x:0:\nwww:x:34:\naudio:x:29:www,else\nwheel:x:10:root\n".into(),
        }
    }

    fn check(user: &str, more: &[&str], uid: u32, gid: u32, groups: &[u32], home: &str) {
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let want = Identity { uid, gid, groups: groups.to_vec(), home: home.into() };
        assert_eq!(users().resolve(user, &more), Ok(want), "{user}");
    }

    #[test]
    fn users_resolve_by_name_and_by_number() {
        check("", &[], 0, 0, &[0, 10], "/root");
        check("www", &[], 33, 34, &[34, 29], "/var/www");
        check("33", &["wheel"], 33, 34, &[34, 29, 10], "/var/www");
        check("33:0", &[], 33, 0, &[], "/var/www");
        check("1000:1001", &["77"], 1000, 1001, &[77], "/");
        check("www:audio", &[], 33, 29, &[], "/var/www");
        check("4000", &[], 4000, 0, &[], "/");
    }

    #[test]
    fn names_that_are_not_there_are_errors() {
        assert_eq!(users().resolve("nobody", &[]), Err(UserError::User("nobody".into())));
        assert_eq!(users().resolve("www:none", &[]), Err(UserError::Group("none".into())));
    }

    #[test]
    fn root_has_a_home_without_a_passwd_file() {
        assert_eq!(Users::default().resolve("", &[]).unwrap().home, "/root");
    }
}
