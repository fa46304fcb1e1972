//! What the state engine keeps: a resource has a spec, which users and front ends write, and a status, which the
//! reconciler that owns it writes.

use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// A kind of resource: its name on the wire and its two halves.
pub trait Kind: Send + Sync + 'static {
    /// The name on the wire: lower case, singular.
    const NAME: &'static str;
    /// What is wanted.
    type Spec: Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What is.
    type Status: Clone + std::fmt::Debug + Default + Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// What the state engine itself knows of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The kind's name.
    pub kind: String,
    /// The name, unique in its kind.
    pub name: String,
    /// The store's revision at which this resource last changed; what compare-and-swap compares.
    pub revision: u64,
    /// Counts the writes of the spec, from 1.
    pub generation: u64,
    /// When it was created, nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

/// A resource of kind `K`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Resource<K: Kind> {
    /// What the state engine knows.
    pub meta: Meta,
    /// What is wanted.
    pub spec: K::Spec,
    /// What is; the default before anyone has written it (null on the wire).
    #[serde(default, deserialize_with = "null_as_default")]
    pub status: K::Status,
}

fn null_as_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::Resource;

    #[test]
    fn a_status_that_nobody_wrote_is_the_default() {
        let json =
            r#"{"meta":{"kind":"x","name":"n","revision":1,"generation":1,"created_ns":1},"spec":SPEC,"status":null}"#;
        let pod: Resource<crate::network::Network> =
            serde_json::from_str(&json.replace("SPEC", r#"{"name":"n","driver":"d"}"#)).unwrap();
        assert!(!pod.status.ready);
        let name: Resource<crate::network::NetworkName> =
            serde_json::from_str(&json.replace("SPEC", r#""id""#)).unwrap();
        assert_eq!(name.spec, "id");
    }
}
