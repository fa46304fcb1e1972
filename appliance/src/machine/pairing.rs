//! Certificates for docker clients, from the zone's page, as a browser with the pairing code gets them.

use super::http::{Answer, Client};
use super::report::print;
use super::state::{StateDir, Zone};
use anyhow::{Context, Result, bail};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// How long the page may take; a wrong code is answered late on purpose.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a bundle consists of.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
/// The largest of them, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The zone's page, with a session.
struct Page {
    client: Client,
    code: String,
    cookie: String,
}

impl Page {
    fn open(dir: &StateDir) -> Result<Self> {
        let Zone { plan, pairing_code, .. } = dir.require_running()?;
        let client = Client::new((plan.address(), plan.ports.web).into(), &dir.client_dir())?;
        let code = pairing_code.context("the pairing code is not known: it stands on the zone's console")?;
        let answer = client.post("/login", "", &form(&[("code", &code)]), PATIENCE)?;
        let cookie = answer.cookie.clone().with_context(|| format!("the page lets nobody in: {}", words(&answer)))?;
        Ok(Self { client, code, cookie })
    }

    fn post(&self, path: &str, fields: &[(&str, &str)], good: u16) -> Result<Vec<u8>> {
        let fields = [&[("code", self.code.as_str())], fields].concat();
        let answer = self.client.post(path, &self.cookie, &form(&fields), PATIENCE)?;
        if answer.status != good {
            bail!("{}", words(&answer));
        }
        Ok(answer.body)
    }
}

/// Writes `ca.pem`, `cert.pem` and `key.pem` for `name` into the folder `to`, which must not be there yet.
///
/// # Errors
/// When no zone runs, or what it says against it.
pub fn certificate(dir: &StateDir, name: &str, role: &str, project: Option<&str>, to: &Path) -> Result<()> {
    let fields = [("name", name), ("role", role), ("project", project.unwrap_or_default())];
    let bundle = Page::open(dir)?.post("/client-bundle", &fields, 200)?;
    fs::DirBuilder::new().mode(0o700).create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut archive = tar::Archive::new(bundle.as_slice());
    for entry in archive.entries()? {
        let entry = entry.context("the bundle is damaged")?;
        let path = entry.path()?.into_owned();
        let Some(file) = FILES.into_iter().find(|file| path == Path::new(file)) else { continue };
        let mut bytes = Vec::new();
        entry.take(MAX_FILE).read_to_end(&mut bytes).context("the bundle is damaged")?;
        let path = to.join(file);
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        written.and_then(|mut f| f.write_all(&bytes)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(&format!("{} has the certificate of {name}: DOCKER_CERT_PATH={}", to.display(), to.display()));
    Ok(())
}

/// Takes back all certificates that were issued for `name`.
///
/// # Errors
/// When no zone runs, or what it says against it.
pub fn take_back(dir: &StateDir, name: &str) -> Result<()> {
    Page::open(dir)?.post("/access/take-back", &[("name", name)], 303)?;
    print(&format!("certificates issued for {name} until now do not count any more"));
    Ok(())
}

fn form(fields: &[(&str, &str)]) -> String {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}

/// What the page says is wrong.
fn words(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let told = text.split_once("role=\"alert\">").and_then(|(_, rest)| rest.split_once("</p>"));
    let told = told.map(|(words, _)| words.replace("&#34;", "\"").replace("&#39;", "'"));
    told.unwrap_or_else(|| format!("the page answered {}", answer.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_escaped_and_the_pages_reason_is_found() {
        assert_eq!(form(&[("code", "A-B"), ("name", "a&b=c")]), "code=A%2DB&name=a%26b%3Dc");
        let answer = |body: &str| Answer { status: 400, body: body.into(), cookie: None };
        let page = answer("<p class=\"error\" role=\"alert\">there is no role &#34;x&#34;</p>");
        assert_eq!(words(&page), "there is no role \"x\"");
        assert_eq!(words(&answer("")), "the page answered 400");
    }
}
