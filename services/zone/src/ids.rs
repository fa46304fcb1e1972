//! Typed ids: an id of one kind of thing cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// Wraps a string that is already known to be such an id.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

string_id!(
    /// A pod: 64 lower-case hexadecimal digits, the id of its first container.
    PodId
);
string_id!(
    /// A container: 64 lower-case hexadecimal digits.
    ContainerId
);
string_id!(
    /// An image: `sha256:` and the hash of its configuration (OCI image specification, "ImageID").
    ImageId
);
string_id!(
    /// A layer: `sha256:` and the hash of its uncompressed archive (OCI image specification, "DiffID").
    LayerId
);
string_id!(
    /// A network: 64 lower-case hexadecimal digits.
    NetworkId
);
string_id!(
    /// A volume's name; `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes.
    VolumeName
);
string_id!(
    /// A snapshot: `VOLUME@NAME`.
    SnapshotId
);
string_id!(
    /// A pod's place on a network: `POD.NETWORK`.
    EndpointId
);

impl EndpointId {
    /// The id of `pod`'s endpoint on `network`.
    #[must_use]
    pub fn of(pod: &PodId, network: &NetworkId) -> Self {
        Self(format!("{pod}.{network}"))
    }
}

impl ContainerId {
    /// The first twelve digits, as people see it.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl PodId {
    /// The first twelve digits, as people see it.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Text always takes more.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes that nobody can guess, from the kernel.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A new id of a container, a network or an exec: 64 lower-case hexadecimal digits that no other has.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random() -> io::Result<String> {
    Ok(hex(&random_bytes::<32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_is_64_digits_and_no_other_has_it() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert!(one.len() == 64 && one.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{one}");
        assert_ne!(one, other);
        assert_eq!(hex(&[0, 0x0f, 0xa0]), "000fa0");
    }
}
