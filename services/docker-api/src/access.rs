//! Who may see and do what: a client is the zone's owner, a project's user, or a reader.
//!
//! [`Scope`] says it; the store shows a project's user only the project's resources (`project::view`), so that what it may
//! not touch is not there for it. Here is what has to be refused beyond that, by method and path.

use crate::errors::{Failure, Result};
use axum::http::Method;

/// What a client may see and do. The default is the owner: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The one project that it may use; none means all.
    pub project: Option<String>,
    /// It may look only.
    pub read_only: bool,
}

impl Scope {
    /// A user of one project.
    #[must_use]
    pub fn of_project(project: &str) -> Self {
        Self { project: Some(project.to_owned()), read_only: false }
    }

    /// The one project that it may use; none means all.
    #[must_use]
    pub fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// Whether what belongs to `project` is seen.
    #[must_use]
    pub fn sees(&self, project: &str) -> bool {
        self.project().is_none_or(|own| own == project)
    }

    /// Checks a request; `path` has no version.
    ///
    /// # Errors
    /// 403 when it may not be done.
    pub fn check(&self, method: &Method, path: &str) -> Result<()> {
        let looks = matches!(*method, Method::GET | Method::HEAD) && !path.ends_with("/attach/ws");
        // The CLI logs in to a registry with what it is given; nothing is kept here.
        if self.read_only && !looks && path != "/auth" {
            return Err(Failure::forbidden("this client may only look: its certificate has the role \"reader\""));
        }
        if self.project.is_some() && !looks && is_everybodys(path) {
            return Err(Failure::forbidden(format!(
                "{method} {path} changes what all projects of the zone share: only the zone's owner may do that"
            )));
        }
        Ok(())
    }
}

/// What is shared by all projects, but for pulling images.
fn is_everybodys(path: &str) -> bool {
    let mut parts = path.trim_start_matches('/').split('/');
    match (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) {
        ("images", "create") => false,
        ("images" | "build" | "commit" | "session" | "grpc" | "v2" | "plugins" | "swarm", _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_user_changes_nothing_that_all_share() {
        let user = Scope::of_project("shop");
        for (method, path, allowed) in [
            (Method::GET, "/images/json", true),
            (Method::POST, "/images/create", true),
            (Method::POST, "/images/load", false),
            (Method::DELETE, "/images/busybox", false),
            (Method::POST, "/build", false),
            (Method::POST, "/containers/create", true),
            (Method::DELETE, "/volumes/x", true),
        ] {
            assert_eq!(user.check(&method, path).is_ok(), allowed, "{method} {path}");
            assert!(Scope::default().check(&method, path).is_ok());
        }
        assert!(user.sees("shop") && !user.sees("other") && Scope::default().sees("other"));
    }

    #[test]
    fn a_reader_only_looks() {
        let reader = Scope { project: None, read_only: true };
        for (method, path, allowed) in [
            (Method::GET, "/containers/json", true),
            (Method::HEAD, "/_ping", true),
            (Method::POST, "/auth", true),
            (Method::GET, "/containers/x/attach/ws", false),
            (Method::POST, "/containers/x/start", false),
            (Method::PUT, "/containers/x/archive", false),
        ] {
            assert_eq!(reader.check(&method, path).is_ok(), allowed, "{method} {path}");
        }
    }
}
