//! The small set of Dockerfile instructions that we read ourselves: `FROM scratch`, COPY, ENTRYPOINT, CMD (both in JSON
//! form), ENV, USER, WORKDIR, LABEL. Anything else is an error that names the line: nothing is skipped in silence.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// One `COPY [--chmod=MODE] SOURCE… TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Paths below the folder of the Dockerfile.
    pub sources: Vec<String>,
    /// Where in the image; a folder when it ends in `/` or there are several sources.
    pub target: String,
    /// Permission bits of the files, instead of those they have.
    pub chmod: Option<u32>,
}

/// A Dockerfile that starts from nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// What is copied, in order.
    pub copies: Vec<Copy>,
    /// How it is started.
    pub config: crate::ImageConfig,
}

/// The base image that a Dockerfile names first, `scratch` for one that we read ourselves.
///
/// # Errors
/// `Dockerfile` when it has no FROM.
pub fn base(text: &str) -> Result<String> {
    logical_lines(text)
        .into_iter()
        .find_map(|(_, line)| {
            let (word, rest) = split_word(&line);
            word.eq_ignore_ascii_case("FROM").then(|| split_word(rest).0.to_owned())
        })
        .ok_or_else(|| Error::Dockerfile { line: 1, reason: "there is no FROM".into() })
}

/// Reads a Dockerfile with `FROM scratch`.
///
/// # Errors
/// `Dockerfile` with the line that is wrong.
pub fn parse(text: &str) -> Result<Dockerfile> {
    let mut file = Dockerfile::default();
    let mut from = 0;
    for (line, text) in logical_lines(text) {
        let fail = |reason: String| Error::Dockerfile { line, reason };
        let (word, rest) = split_word(&text);
        let instruction = word.to_ascii_uppercase();
        if from == 0 && instruction != "FROM" {
            return Err(fail("FROM must come first".into()));
        }
        match instruction.as_str() {
            "FROM" if rest.trim() == "scratch" && from == 0 => from = line,
            "FROM" => return Err(fail("only one FROM scratch is read here".into())),
            "COPY" => file.copies.push(copy(rest, &file.config.workdir).map_err(fail)?),
            "ENTRYPOINT" => file.config.entrypoint = json_list(rest).map_err(fail)?,
            "CMD" => file.config.cmd = json_list(rest).map_err(fail)?,
            "ENV" => file.config.env.extend(pairs(rest).map_err(fail)?),
            "LABEL" => file.config.labels.extend(pairs(rest).map_err(fail)?),
            "USER" => file.config.user = rest.trim().into(),
            "WORKDIR" if rest.starts_with('/') => file.config.workdir = rest.trim().into(),
            "WORKDIR" => return Err(fail("WORKDIR wants an absolute path".into())),
            other => return Err(fail(format!("{other} is not supported after FROM scratch"))),
        }
    }
    Ok(file)
}

/// Lines without comments, joined where one ends in a backslash, with the number of the first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if line.starts_with('#') || (line.is_empty() && open.is_none()) {
            continue;
        }
        let (part, goes_on) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        let (number, joined) = match open.take() {
            Some((number, before)) => (number, format!("{before} {part}")),
            None => (at + 1, part.to_owned()),
        };
        if goes_on {
            open = Some((number, joined));
        } else {
            lines.push((number, joined));
        }
    }
    lines.extend(open);
    lines
}

fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

fn json_list(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|_| format!("{text:?} is not in JSON form, like [\"/bin/app\", \"--flag\"]"))
}

fn copy(text: &str, workdir: &str) -> Result<Copy, String> {
    let mut chmod = None;
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = split_word(option);
        let mode = option.strip_prefix("chmod=").ok_or_else(|| format!("COPY --{option} is not supported"))?;
        let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
        chmod = Some(mode.ok_or("--chmod wants permission bits in octal, like 0755")?);
        rest = after;
    }
    let mut words = if rest.starts_with('[') { json_list(rest)? } else { words(rest)? };
    let target = words.pop().filter(|_| !words.is_empty()).ok_or("COPY wants at least one source and a target")?;
    let target = if target.starts_with('/') { target } else { format!("{workdir}/{target}") };
    Ok(Copy { sources: words, target, chmod })
}

/// `A=1 B="two words"`, or the old `A the rest of the line`.
fn pairs(text: &str) -> Result<BTreeMap<String, String>, String> {
    let (first, rest) = split_word(text);
    if !first.contains('=') && !rest.is_empty() {
        return Ok([(first.to_owned(), rest.trim().to_owned())].into());
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not NAME=VALUE")),
        })
        .collect()
}

/// Words as a shell splits them: quotes and backslashes, no variables.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some('"') | None) => word.get_or_insert_default().extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('$', None | Some('"')) => return Err("variables are not supported".into()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_instruction_is_read() {
        let file = parse(
            "# a service\nFROM scratch\nWORKDIR /srv\nCOPY --chmod=0755 vpc tool /bin/\nCOPY page .\nENV A=1 B=\"two \
             words\" \\\n  C=3\nENV OLD and the rest\nLABEL v=1\nUSER kraud-vpc:kraud\nENTRYPOINT [\"/bin/vpc\"]\nCMD [\"-v\"]\n",
        )
        .unwrap();
        assert_eq!(file.config.entrypoint, ["/bin/vpc"]);
        assert_eq!(file.config.cmd, ["-v"]);
        assert_eq!(file.config.env["B"], "two words");
        assert_eq!(file.config.env["C"], "3");
        assert_eq!(file.config.env["OLD"], "and the rest");
        assert_eq!(file.config.user, "kraud-vpc:kraud");
        assert_eq!(
            file.copies,
            [
                Copy { sources: vec!["vpc".into(), "tool".into()], target: "/bin/".into(), chmod: Some(0o755) },
                Copy { sources: vec!["page".into()], target: "/srv/.".into(), chmod: None },
            ]
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_line() {
        for (text, line) in [
            ("FROM scratch\nRUN make\n", 2),
            ("FROM debian\n", 1),
            ("COPY a b\n", 1),
            ("FROM scratch\n\nENTRYPOINT /bin/app\n", 3),
            ("FROM scratch\nCOPY onlyone\n", 2),
            ("FROM scratch\nCOPY --chown=1 a b\n", 2),
            ("FROM scratch\nCOPY --chmod=4755 a b\n", 2),
            ("FROM scratch\nENV A=$B\n", 2),
        ] {
            match parse(text) {
                Err(Error::Dockerfile { line: at, .. }) => assert_eq!(at, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_base_is_found_whatever_the_rest_is() {
        assert_eq!(base("# x\nfrom debian:trixie AS b\nRUN x").unwrap(), "debian:trixie");
        assert!(base("RUN x").is_err());
    }
}
