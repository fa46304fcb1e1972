//! What a client's certificate says of its holder, and whether it was taken back.
//!
//! Only certificates that the handshake has found to be of the zone's authority come here. Must not: grant anything to a word that it
//! does not know.

use crate::access::Scope;
use crate::errors::{Failure, Result};
use crate::state::World;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
use zone::access::{Holder, Role};

/// The holder of a certificate, and when it was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Who holds it.
    pub holder: Holder,
    /// Seconds since the Unix epoch; 0 for those from before this was noted.
    pub issued_s: u64,
}

impl Certificate {
    /// Reads a certificate's subject.
    ///
    /// # Errors
    /// What about it is unknown.
    pub fn read(der: &[u8]) -> std::result::Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("it cannot be read: {e}"))?;
        let subject = certificate.subject();
        let name = first(subject.iter_common_name()).unwrap_or_default();
        let issued_s = serial_number(subject).and_then(|text| text.parse().ok()).unwrap_or_default();
        // Those from before there were roles say none, and have a name that could not be one now.
        let Some(word) = first(subject.iter_organizational_unit()) else {
            return Ok(Self { holder: Holder { name, ..Holder::default() }, issued_s });
        };
        let role = Role::parse(&word).ok_or_else(|| format!("there is no role \"{word}\""))?;
        let holder = Holder { name, role, project: first(subject.iter_organization()) };
        holder.check()?;
        Ok(Self { holder, issued_s })
    }

    /// What the holder may see and do.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope { project: self.holder.project.clone(), read_only: self.holder.role == Role::Reader }
    }

    /// Checks that it was not taken back.
    ///
    /// # Errors
    /// 403 when it was.
    pub fn check(&self, world: &World) -> Result<()> {
        let revoked = world.revocations.get(&self.holder.name);
        if revoked.is_some_and(|r| self.issued_s <= r.spec.issued_until_s) {
            return Err(Failure::forbidden(format!(
                "the certificate of \"{}\" was taken back: ask the zone's owner for a new one",
                self.holder.name
            )));
        }
        Ok(())
    }
}

fn first<'a>(mut found: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>) -> Option<String> {
    found.next()?.as_str().ok().map(str::to_owned)
}

/// RFC 5280 A.1: id-at-serialNumber.
fn serial_number(subject: &X509Name<'_>) -> Option<String> {
    first(subject.iter_by_oid(&x509_parser::oid_registry::OID_X509_SERIALNUMBER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(fields: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in fields {
            params.distinguished_name.push(kind.clone(), *text);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn issued() -> DnType {
        DnType::CustomDnType(vec![2, 5, 4, 5])
    }

    #[test]
    fn a_role_limits_and_no_role_is_an_owners() {
        use DnType::{CommonName as Name, OrganizationName as Project, OrganizationalUnitName as Word};
        let read = |fields: &[(DnType, &str)]| Certificate::read(&certificate(fields));
        let old = read(&[(Name, "kraud client")]).unwrap();
        assert_eq!((old.scope(), old.issued_s), (Scope::default(), 0));
        let user = read(&[(Name, "ci"), (Word, "user"), (Project, "shop"), (issued(), "1800000000")]).unwrap();
        assert_eq!((user.scope(), user.issued_s), (Scope::of_project("shop"), 1_800_000_000));
        let reader = read(&[(Name, "p"), (Word, "reader"), (issued(), "1")]).unwrap();
        assert_eq!(reader.scope(), Scope { project: None, read_only: true });
        // What is not understood gives nothing.
        assert!(read(&[(Name, "x"), (Word, "god"), (issued(), "1")]).is_err());
        assert!(read(&[(Name, "x"), (Word, "user"), (issued(), "1")]).is_err());
        assert!(Certificate::read(b"no certificate").is_err());
    }

    #[test]
    fn a_certificate_that_was_taken_back_does_not_count_and_a_new_one_does() {
        let mut world = World::default();
        let holder = Holder { name: "ci".into(), ..Holder::default() };
        let of = |issued_s| Certificate { holder: holder.clone(), issued_s };
        assert!(of(5).check(&world).is_ok());
        world.revoke("ci", 5);
        assert!(of(5).check(&world).is_err() && of(4).check(&world).is_err());
        assert!(of(6).check(&world).is_ok());
        let other = Certificate { holder: Holder { name: "cd".into(), ..holder.clone() }, issued_s: 1 };
        assert!(other.check(&world).is_ok());
    }
}
