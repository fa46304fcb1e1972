//! Versions of images: numbers with dots between them, compared number by number.

use anyhow::{Context, Result, ensure};

/// A version such as `1.4.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u32>);

impl Version {
    /// Reads a version.
    ///
    /// # Errors
    /// When it is anything but one to six numbers with dots between them.
    pub fn parse(text: &str) -> Result<Self> {
        let numbers = text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
        let numbers = numbers.with_context(|| format!("`{text}` is no version"))?;
        ensure!(numbers.len() <= 6, "`{text}` is no version");
        Ok(Self(numbers))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<_> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_number_by_number() {
        let of = |text| Version::parse(text).unwrap();
        assert!(of("0.9.0") < of("0.10.0") && of("1.0") < of("1.0.1") && of("2") > of("1.99.99"));
        assert!(
            ["", "1.", "1.a", "v1", "1.-1", "1.2.3.4.5.6.7", "../1"].iter().all(|text| Version::parse(text).is_err())
        );
    }
}
