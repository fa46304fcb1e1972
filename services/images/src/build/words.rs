//! Words of a Dockerfile: how they are split, and what stands for a variable.

use crate::fail::{Result, invalid};
use std::collections::BTreeMap;

/// A word with all its values in it may be this long.
const MAX_EXPANDED: usize = 1 << 20;
/// Values that stand for other values, `${A:-${B:-${C}}}`: each takes a part of the stack.
const MAX_DEPTH: usize = 64;

/// The values of variables.
pub type Values = BTreeMap<String, String>;

/// Splits at white space outside of quotes; quotes and escapes stay.
#[must_use]
pub fn split(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Takes quotes and escapes off a word and puts values in.
///
/// # Errors
/// `Invalid` when a variable is written wrong, or `${NAME:?…}` has no value.
pub fn expand(word: &str, values: &Values, escape: char) -> Result<String> {
    let chars: Vec<char> = word.chars().collect();
    let mut reader = Reader { chars: &chars, at: 0, values, escape, left: MAX_EXPANDED, depth: 0 };
    reader.until(None)
}

/// Values into a document, where quotes mean nothing.
///
/// # Errors
/// As [`expand`].
pub fn expand_document(text: &str, values: &Values) -> Result<String> {
    let quoted: String = text.chars().flat_map(|c| if "'\"".contains(c) { vec!['\\', c] } else { vec![c] }).collect();
    expand(&quoted, values, '\\')
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
    values: &'a Values,
    escape: char,
    left: usize,
    depth: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.get(self.at).copied();
        self.at += 1;
        c
    }

    fn add(&mut self, out: &mut String, text: &str) -> Result<()> {
        self.left = self.left.checked_sub(text.len()).ok_or_else(|| invalid("a word with its values is too long"))?;
        out.push_str(text);
        Ok(())
    }

    /// Reads up to `end`, or everything.
    fn until(&mut self, end: Option<char>) -> Result<String> {
        let mut out = String::new();
        let mut double = false;
        while let Some(c) = self.next() {
            match c {
                c if Some(c) == end && !double => return Ok(out),
                '\'' if !double => {
                    while let Some(c) = self.next().filter(|c| *c != '\'') {
                        out.push(c);
                    }
                }
                '"' => double = !double,
                '$' => {
                    let value = self.variable()?;
                    self.add(&mut out, &value)?;
                }
                c if c == self.escape => match self.next() {
                    Some(next) if double && !"\"$".contains(next) && next != self.escape => out.extend([c, next]),
                    Some(next) => out.push(next),
                    None => out.push(c),
                },
                c => out.push(c),
            }
        }
        match end {
            Some(_) => Err(invalid("a variable's } is missing")),
            None => Ok(out),
        }
    }

    fn name(&mut self) -> String {
        let from = self.at;
        while self.chars.get(self.at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
            self.at += 1;
        }
        self.chars[from..self.at].iter().collect()
    }

    fn variable(&mut self) -> Result<String> {
        if self.chars.get(self.at) != Some(&'{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".into() } else { self.values.get(&name).cloned().unwrap_or_default() });
        }
        self.at += 1;
        let name = self.name();
        let value = self.values.get(&name).cloned();
        let bad = || invalid(format!("unsupported modifier or missing }} at the variable {name:.100?}"));
        match self.next().ok_or_else(bad)? {
            '}' if !name.is_empty() => Ok(value.unwrap_or_default()),
            ':' => {
                let modifier = self.next().ok_or_else(bad)?;
                let value = value.filter(|v| !v.is_empty());
                self.modified(modifier, &name, value)?.ok_or_else(bad)
            }
            modifier => self.modified(modifier, &name, value)?.ok_or_else(bad),
        }
    }

    fn modified(&mut self, modifier: char, name: &str, value: Option<String>) -> Result<Option<String>> {
        if name.is_empty() || !"-+?".contains(modifier) {
            return Ok(None);
        }
        if self.depth >= MAX_DEPTH {
            return Err(invalid(format!("the variable {name:.100?} is nested deeper than {MAX_DEPTH}")));
        }
        self.depth += 1;
        let word = self.until(Some('}'))?;
        self.depth -= 1;
        Ok(Some(match (modifier, value) {
            ('-', value) => value.unwrap_or(word),
            ('+', value) => value.map(|_| word).unwrap_or_default(),
            (_, Some(value)) => value,
            (_, None) => return Err(invalid(format!("{name}: {word}"))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_as_the_dockerfile_reference_says() {
        let values: Values = [("A", "value"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        for (word, expected) in [
            ("$A/x", "value/x"),
            ("${A}x", "valuex"),
            ("$NONE", ""),
            ("${NONE:-d$A}", "dvalue"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${A:+yes}", "yes"),
            ("${NONE+yes}", ""),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A b\"", "value b"),
            ("a\\ b", "a b"),
            ("\"a\\nb\"", "a\\nb"),
            ("$", "$"),
            ("cost$ ", "cost$ "),
        ] {
            assert_eq!(expand(word, &values, '\\').unwrap(), expected, "{word}");
        }
        for word in ["${A", "${}", "${A!x}", "${NONE:?needed}", "${A:"] {
            assert!(expand(word, &values, '\\').is_err(), "{word}");
        }
        assert_eq!(expand_document("say \"$A\" 'x'", &values).unwrap(), "say \"value\" 'x'");
    }

    #[test]
    fn variables_in_variables_have_an_end() {
        let nested = |depth: usize| format!("{}x{}", "${A:-".repeat(depth), "}".repeat(depth));
        assert_eq!(expand(&nested(10), &Values::new(), '\\').unwrap(), "x");
        assert!(expand(&nested(1_000_000), &Values::new(), '\\').unwrap_err().message.contains("nested"));
    }

    #[test]
    fn words_keep_what_is_quoted_together() {
        assert_eq!(split("a  'b c' d\\ e \"f 'g\" h", '\\'), ["a", "'b c'", "d\\ e", "\"f 'g\"", "h"]);
    }
}
