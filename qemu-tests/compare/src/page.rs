//! The part of docs/docker.md that the list of allowed differences makes.

use crate::allowed::Allowed;
use anyhow::Result;
use std::fmt::Write as _;

/// What begins and ends that part.
pub const MARKS: [&str; 2] = ["<!-- made by: cargo run -p compare -- --page -->", "<!-- end -->"];

/// The part, with its marks.
///
/// # Errors
/// When the list is none.
pub fn page() -> Result<String> {
    let reasons = Allowed::read()?.reasons;
    let mut page = format!("{}\n", MARKS[0]);
    for (title, pending) in [("Meant to be", false), ("Not there yet", true)] {
        let _ = write!(page, "\n### {title}\n\n| what differs | why |\n| --- | --- |\n");
        for reason in reasons.iter().filter(|r| r.pending == pending) {
            let _ = writeln!(page, "| {} | {} |", reason.what, reason.why);
        }
    }
    let _ = writeln!(page, "\n{}", MARKS[1]);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_says_what_the_list_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/docker.md");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(&page().unwrap()),
            "docs/docker.md: put the output of `cargo run -p compare -- --page` between its marks"
        );
    }
}
