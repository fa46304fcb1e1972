//! Typed ids: an id of one kind of thing cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::fmt;

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
