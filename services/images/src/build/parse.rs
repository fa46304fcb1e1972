//! Dockerfiles as text: lines to instructions, with continuations, comments, flags, JSON forms and heredocs.
//!
//! Must not: know what an instruction means. Source: the Dockerfile reference.

use crate::fail::{Result, invalid};

/// Instructions of one Dockerfile.
const MAX_INSTRUCTIONS: usize = 2_000;
/// A document's name may be this long: it is looked for at every `<<`.
const MAX_HEREDOC_NAME: usize = 255;

/// One instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// The number of its first line, from 1.
    pub line: usize,
    /// `RUN`, in upper case.
    pub name: String,
    /// `--chown=a:b` as (`chown`, `a:b`).
    pub flags: Vec<(String, String)>,
    /// What follows, as it is written.
    pub rest: String,
    /// The same as a list, when it is in JSON form.
    pub json: Option<Vec<String>>,
    /// Documents that stand behind it.
    pub heredocs: Vec<Heredoc>,
}

/// `<<NAME` and the lines up to `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// Its name, which a copied file gets.
    pub name: String,
    /// Variables in it are replaced: the name is not quoted.
    pub expand: bool,
    /// Its lines.
    pub body: String,
}

/// A Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// What takes the meaning of the next character away: `\` or `` ` ``.
    pub escape: char,
    /// The instructions, in order.
    pub instructions: Vec<Instruction>,
}

impl Instruction {
    /// A flag's value.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// As it was written, on one line: what progress and history show.
    pub fn text(&self) -> String {
        let flags: String = self.flags.iter().map(|(n, v)| format!("--{n}={v} ")).collect();
        format!("{} {flags}{}", self.name, self.rest).trim_end().to_owned()
    }

    /// An error about it.
    pub fn error(&self, why: impl std::fmt::Display) -> zone::ApiError {
        invalid(format!("dockerfile parse error on line {}: {}: {why}", self.line, self.name))
    }
}

/// Reads a Dockerfile.
///
/// # Errors
/// `Invalid` with the line that is wrong.
pub fn parse(text: &str) -> Result<Dockerfile> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_directive(text)?;
    let mut lines = text.lines().enumerate();
    let mut instructions = Vec::new();
    while let Some((at, first)) = lines.next() {
        if is_comment(first) || first.trim().is_empty() {
            continue;
        }
        let mut logical = first.trim_start().to_owned();
        while let Some(open) = continued(&logical, escape) {
            logical.truncate(open);
            let Some((_, next)) = lines.find(|(_, l)| !is_comment(l) && !l.trim().is_empty()) else { break };
            logical.push_str(next);
        }
        let mut instruction = read(at + 1, logical.trim_end())?;
        if matches!(instruction.name.as_str(), "RUN" | "COPY" | "ADD") && instruction.json.is_none() {
            for (name, strip, expand) in heredoc_names(&instruction.rest) {
                let mut body = String::new();
                let mut ended = false;
                for (_, line) in lines.by_ref() {
                    let line = if strip { line.trim_start_matches('\t') } else { line };
                    if line == name {
                        ended = true;
                        break;
                    }
                    body.push_str(line);
                    body.push('\n');
                }
                if !ended {
                    return Err(instruction.error(format!("the document <<{name} has no end")));
                }
                instruction.heredocs.push(Heredoc { name, expand, body });
            }
        }
        instructions.push(instruction);
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(invalid(format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions")));
        }
    }
    if instructions.is_empty() {
        return Err(invalid("the Dockerfile cannot be empty"));
    }
    Ok(Dockerfile { escape, instructions })
}

/// Reads one instruction without documents, as `--change` and ONBUILD have it.
///
/// # Errors
/// `Invalid` when it is none.
pub fn read(line: usize, text: &str) -> Result<Instruction> {
    let (word, mut rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let mut instruction = Instruction { line, name: word.to_ascii_uppercase(), ..Instruction::default() };
    if instruction.name != "ONBUILD" {
        while let Some(flag) = rest.trim_start().strip_prefix("--") {
            let (flag, after) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
            if flag.is_empty() {
                rest = after;
                break;
            }
            let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
            instruction.flags.push((name.to_owned(), value.trim_matches('"').to_owned()));
            rest = after;
        }
    }
    rest = rest.trim();
    if rest.starts_with('[') {
        instruction.json = serde_json::from_str(rest).ok();
    }
    instruction.rest = rest.to_owned();
    if rest.is_empty() && !matches!(instruction.name.as_str(), "CMD" | "ENTRYPOINT") {
        return Err(instruction.error("it requires at least one argument"));
    }
    Ok(instruction)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Where the line is cut when the next one belongs to it.
fn continued(line: &str, escape: char) -> Option<usize> {
    let trimmed = line.trim_end_matches([' ', '\t', '\r']);
    trimmed.ends_with(escape).then(|| trimmed.len() - escape.len_utf8())
}

/// `# escape=X`, which must stand before anything but other directives.
fn escape_directive(text: &str) -> Result<char> {
    for line in text.lines() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|c| c.split_once('=')) else { break };
        if key.trim().eq_ignore_ascii_case("escape") {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err(invalid(format!("invalid escape token {other:?} does not match ` or \\"))),
            };
        }
    }
    Ok('\\')
}

/// The documents that an instruction announces: name, whether tabs go, whether variables are replaced.
fn heredoc_names(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    let mut quote = None;
    let chars: Vec<char> = rest.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '<' && chars.get(at + 1) == Some(&'<') && (at == 0 || chars[at - 1] != '<') => {
                let word = chars[at + 2..].iter().take_while(|c| !c.is_whitespace()).take(MAX_HEREDOC_NAME + 1);
                let word: String = word.collect();
                let (strip, word) = word.strip_prefix('-').map_or((false, word.as_str()), |w| (true, w));
                let name = word.trim_matches(['"', '\'']);
                let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
                if !name.is_empty() && word.len() <= MAX_HEREDOC_NAME && name.chars().all(is_name) {
                    found.push((name.to_owned(), strip, name == word));
                }
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Instruction {
        parse(text).unwrap().instructions.remove(0)
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let file = parse("# syntax=docker/dockerfile:1\n\n# text\nFROM a\nRUN one && \\\n  # in between\n\n  two \\\n  three\ncmd [\"x\", \"y\"]\n")
            .unwrap();
        let names: Vec<_> = file.instructions.iter().map(|i| (i.line, i.name.as_str(), i.rest.as_str())).collect();
        assert_eq!(names, [(4, "FROM", "a"), (5, "RUN", "one &&   two   three"), (10, "CMD", "[\"x\", \"y\"]")]);
        assert_eq!(file.instructions[2].json.as_deref(), Some(&["x".to_owned(), "y".to_owned()][..]));
        let ticks = parse("# escape=`\nFROM a\nRUN dir c:\\ `\n x").unwrap();
        assert_eq!((ticks.escape, ticks.instructions[1].rest.as_str()), ('`', "dir c:\\  x"));
    }

    #[test]
    fn flags_stand_before_what_they_are_about() {
        let copy = one("COPY --from=build --chown=1:2 /a /b");
        assert_eq!((copy.flag("from"), copy.flag("chown"), copy.rest.as_str()), (Some("build"), Some("1:2"), "/a /b"));
        assert_eq!(copy.text(), "COPY --from=build --chown=1:2 /a /b");
        assert!(one("RUN echo --no-flag").flags.is_empty());
    }

    #[test]
    fn heredocs_are_taken_up_to_their_name() {
        let run = one("RUN <<EOF\necho $A\nEOF\n");
        assert_eq!(run.heredocs, [Heredoc { name: "EOF".into(), expand: true, body: "echo $A\n".into() }]);
        let copy = one("COPY <<-'a.txt' <<b /dir/\n\tone\n\ta.txt\ntwo\nb\n");
        let bodies: Vec<_> = copy.heredocs.iter().map(|h| (h.name.as_str(), h.expand, h.body.as_str())).collect();
        assert_eq!(bodies, [("a.txt", false, "one\n"), ("b", true, "two\n")]);
        assert!(one("RUN cat <<<here").heredocs.is_empty());
        assert!(parse("RUN <<EOF\nx\n").is_err());
    }

    #[test]
    fn a_line_of_beginnings_of_documents_is_read_once() {
        // As many steps for each of its beginnings as there are characters behind it would take minutes.
        let line = format!("RUN {}<", "<<a".repeat(40_000));
        assert!(one(&line).heredocs.is_empty());
    }

    #[test]
    fn what_is_no_dockerfile_is_refused() {
        for text in ["", "# only a comment\n", "FROM", "# escape=x\nFROM a"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
