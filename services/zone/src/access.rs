//! Who uses the zone: what a client's certificate says of its holder, and whose certificates were taken back.
//!
//! A certificate's subject has the name (`CN`), the role (`OU`), the project (`O`) and the second of issue (`serialNumber`). The zone's
//! authority has signed it: nothing has to be asked to know who it is. One without a role is an owner's, as all were before there were
//! roles.

use crate::resource::Kind;
use serde::{Deserialize, Serialize};

/// The longest name of a person or project in a certificate.
const MAX_NAME: usize = 63;

/// What the holder of a certificate may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    #[default]
    Owner,
    /// Everything in one project.
    User,
    /// Look, at one project or at all.
    Reader,
}

impl Role {
    /// The word in a certificate.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::User => "user",
            Self::Reader => "reader",
        }
    }

    /// The role of a word in a certificate; none that is known is no role.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Owner, Self::User, Self::Reader].into_iter().find(|role| role.as_str() == word)
    }
}

/// Who holds a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The name, of a person or a program.
    pub name: String,
    /// What it may do.
    #[serde(default)]
    pub role: Role,
    /// The one project that it sees; none sees all.
    #[serde(default)]
    pub project: Option<String>,
}

impl Holder {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        let legal = |text: &str| {
            text.len() <= MAX_NAME
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-@".contains(&b))
        };
        if !legal(&self.name) {
            return Err(format!(
                "\"{}\" cannot be a name: 1 to {MAX_NAME} letters, digits, '_', '.', '-' and '@', a letter or digit first",
                self.name
            ));
        }
        match (self.role, &self.project) {
            (Role::User, None) => Err("a user needs a project: name the one that may be used".into()),
            (Role::Owner, Some(_)) => {
                Err("an owner has all projects: leave the project out, or choose another role".into())
            }
            (_, Some(project)) if !legal(project) || project.contains('@') => {
                Err(format!("\"{project}\" cannot be a project's name: letters, digits, '_', '.' and '-'"))
            }
            _ => Ok(()),
        }
    }
}

/// The resource kind `revocation`, named by the holder: certificates that were taken back.
#[derive(Clone, Debug)]
pub struct Revocation;

impl Kind for Revocation {
    const NAME: &'static str = "revocation";
    type Spec = RevocationSpec;
    type Status = ();
}

/// Which certificates of a holder do not count any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationSpec {
    /// Those issued up to this second since the Unix epoch.
    pub issued_until_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_has_a_name_and_what_its_role_needs() {
        let holder = |name: &str, role, project: Option<&str>| Holder {
            name: name.into(),
            role,
            project: project.map(str::to_owned),
        };
        for (holder, good) in [
            (holder("anna", Role::Owner, None), true),
            (holder("ci@shop", Role::User, Some("shop")), true),
            (holder("prometheus", Role::Reader, None), true),
            (holder("prometheus", Role::Reader, Some("shop")), true),
            (holder("anna", Role::User, None), false),
            (holder("anna", Role::Owner, Some("shop")), false),
            (holder("", Role::Owner, None), false),
            (holder("a\nb", Role::Owner, None), false),
            (holder("-a", Role::Owner, None), false),
            (holder("a", Role::User, Some("../x")), false),
        ] {
            assert_eq!(holder.check().is_ok(), good, "{holder:?}");
        }
    }

    #[test]
    fn a_role_is_its_word_and_another_word_is_none() {
        for role in [Role::Owner, Role::User, Role::Reader] {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("admin"), None);
    }
}
