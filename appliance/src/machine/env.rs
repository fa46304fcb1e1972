//! `cargo appliance env`: the zone as shell variables.

use super::lan;
use super::state::{StateDir, Zone};
use std::path::{Path, PathBuf};

/// The variables, in the order in which they are printed.
#[must_use]
pub fn variables(dir: &StateDir, zone: &Zone) -> Vec<(&'static str, String)> {
    let (address, ports) = (zone.plan.address(), zone.plan.ports);
    let mut out = vec![
        ("DOCKER_HOST", format!("tcp://{address}:{}", ports.docker)),
        ("DOCKER_TLS_VERIFY", "1".into()),
        // The zone builds without BuildKit (docs/decisions/0041).
        ("DOCKER_BUILDKIT", "0".into()),
        ("DOCKER_CERT_PATH", dir.client_dir().display().to_string()),
        ("KRAUD_WEB", format!("https://{address}:{}/", ports.web)),
        ("KRAUD_PAIRING_CODE", zone.pairing_code.clone().unwrap_or_default()),
        ("KRAUD_DOOR", format!("{address}:{}", ports.door)),
        ("KRAUD_STATE", dir.path().display().to_string()),
    ];
    if let Some(namespace) = lan::namespace(zone) {
        let namespace = namespace.display();
        // The way to run a command where the zone is: `$KRAUD_LAN_ENTER docker ps`.
        out.push(("KRAUD_LAN_ENTER", format!("nsenter --net={namespace}")));
        out.push(("KRAUD_LAN_NETNS", namespace.to_string()));
        out.push(("KRAUD_LAN_ADDRESS", address.to_string()));
    }
    if let Some(docker) = docker_cli(&zone.plan.tools) {
        out.push(("KRAUD_DOCKER", docker.display().to_string()));
    }
    out
}

/// A docker CLI: this computer's own, else that of the tools tree, whose programs are Go and need nothing of the tree.
fn docker_cli(tools: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).map(|dir| dir.join("docker"));
    own.chain([tools.join("usr/bin/docker")]).find(|program| program.is_file())
}

/// The lines that `eval` reads.
#[must_use]
pub fn shell(variables: &[(&str, String)]) -> String {
    variables.iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect()
}

fn quote(value: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:@%+=,".contains(char);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_every_value_back() {
        for value in ["plain", "", "with space", "it's", "$HOME `id` \"x\" \\", "a\nb", "ü;rm -rf /", "~", "#x", "-n"]
        {
            let lines = shell(&[("VALUE", value.into())]);
            let script = format!("{lines}printf '%s' \"$VALUE\"");
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }
}
