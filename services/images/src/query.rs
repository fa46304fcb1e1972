//! Query strings whose names repeat (`names=a&names=b`).

use crate::fail::{Result, invalid};
use percent_encoding::percent_decode_str;

/// The parameters of a query string, in order.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string; none means no parameters.
    pub fn parse(text: Option<&str>) -> Self {
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = text.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        Self(pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect())
    }

    /// All values of a name that are not empty.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.clone()).collect()
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// The first value of a name that must be there.
    ///
    /// # Errors
    /// `Invalid` when it is not.
    pub fn need(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| invalid(format!("the parameter {name} is missing")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_repeat_and_values_are_decoded() {
        let q = Query::parse(Some("names=a%3Ab&names=c+d&x=&y"));
        assert_eq!(q.all("names"), ["a:b", "c d"]);
        assert_eq!((q.get("x"), q.get("y"), q.need("z").is_err()), (None, None, true));
    }
}
