//! RUN: the command in a container made of what is there so far; what it changed is the layer.

use super::Work;
use super::cache::Layer;
use super::config::{self, Config};
use super::parse::Instruction;
use super::stage::Stage;
use crate::digest::Digest;
use crate::fail::Result;
use serde_json::{Value, json};
use zone::image::Image;

/// The agent's own program, which waits to be removed (`zone::guest::IDLE_PROGRAM`).
const IDLE: &str = zone::guest::IDLE_PROGRAM;
/// Where scripts of heredocs are put: a file system in memory, which is no part of the layer.
const SCRIPTS: &str = "/dev";

impl Work<'_> {
    pub(super) async fn run_step(&mut self, stage: &mut Stage, i: &Instruction) -> Result<()> {
        let (command, script) = command(&stage.config, i);
        let host = host_config(i, &self.build.host, stage)?;
        let env = environment(stage, &self.build.args);
        let user = stage.config.get("User").and_then(Value::as_str).unwrap_or_default().to_owned();
        let folder =
            stage.config.get("WorkingDir").and_then(Value::as_str).filter(|w| !w.is_empty()).unwrap_or("/").to_owned();
        let args: Vec<String> = stage.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let key = stage.step_key(&format!("RUN {command:?} {script:?} {user:?} {folder:?} {args:?} {:?}", i.flags));
        if let Some(record) = self.cached(&key).await {
            return self.end(stage, &key, &history(&command, &args), &record).await;
        }
        let image = self.step_image(stage).await?;
        let config = json!({
            "Image": image.to_string(), "Entrypoint": [IDLE], "Cmd": [], "User": "0:0", "WorkingDir": "/",
            "Labels": {"io.kraudbox.build": "step"}, "Healthcheck": {"Test": ["NONE"]}, "HostConfig": host,
        });
        let container = self.builder.docker.start(&config).await?;
        self.tell(format!(" ---> Running in {}\n", container.id.get(..12).unwrap_or(&container.id))).await;
        if let Some((name, text)) = &script {
            container.put(SCRIPTS, script_archive(name, text)).await?;
        }
        let exec = json!({"Cmd": command, "Env": env, "User": user, "WorkingDir": folder, "AttachStdout": true, "AttachStderr": true});
        let code = container.exec(exec, self.progress).await?;
        if code != 0 {
            self.progress.exit_code(code);
            let what = command.join(" ");
            return Err(zone::ApiError::new(
                zone::ErrorKind::Invalid,
                format!("The command '{what:.2000}' returned a non-zero code: {code}"),
            ));
        }
        let (digest, size) = container.layer(&self.builder.context.store).await?;
        self.tell(format!(
            " ---> Removed intermediate container {}\n",
            container.id.get(..12).unwrap_or(&container.id)
        ))
        .await;
        drop(container);
        let record = self.keep(&key, Some(Layer::plain(&digest, size)))?;
        self.end(stage, &key, &history(&command, &args), &record).await
    }

    /// The image that a step's container is made of.
    async fn step_image(&mut self, stage: &Stage) -> Result<Digest> {
        let zone = &self.builder.context.zone;
        let before = match &stage.image {
            Some(id) => id.clone(),
            None => Digest::of(&stage.document()),
        };
        let known = zone.get::<Image>(&before.to_string()).await.is_ok();
        let id = stage.finish(&self.builder.context, Vec::new()).await?;
        if !known {
            self.temporary.images.insert(id.clone());
        }
        Ok(id)
    }
}

/// What is executed, and the script that it needs, if any: its name and text.
fn command(config: &Config, i: &Instruction) -> (Vec<String>, Option<(String, String)>) {
    if let Some(list) = &i.json {
        return (list.clone(), None);
    }
    let shell = config::shell(config);
    let Some(first) = i.heredocs.first() else { return ([shell, vec![i.rest.clone()]].concat(), None) };
    let only = i.heredocs.len() == 1 && i.rest.trim_start_matches(['<', '-']).trim_matches(['"', '\'']) == first.name;
    if only && first.body.starts_with("#!") {
        let name = format!("kraud-{}", first.name);
        return (vec![format!("{SCRIPTS}/{name}")], Some((name, first.body.clone())));
    }
    if only {
        return ([shell, vec![first.body.clone()]].concat(), None);
    }
    // The shell reads documents as the Dockerfile has them.
    let mut text = i.rest.clone();
    for document in &i.heredocs {
        text.push_str(&format!("\n{}{}", document.body, document.name));
    }
    ([shell, vec![text]].concat(), None)
}

fn script_archive(name: &str, text: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(text.len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    // Memory takes everything.
    let _ = builder.append_data(&mut header, name, text.as_bytes());
    builder.into_inner().unwrap_or_default()
}

/// The image's environment, and the arguments that it does not hide.
fn environment(stage: &Stage, given: &std::collections::BTreeMap<String, Option<String>>) -> Vec<String> {
    let env = config::env(&stage.config);
    let predefined = given.iter().filter(|(k, _)| super::PREDEFINED.contains(&k.as_str()));
    let mut all: std::collections::BTreeMap<String, String> =
        predefined.filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect();
    all.extend(stage.args.clone());
    all.extend(env);
    all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

/// `|1 A=b /bin/sh -c …`, as Docker shows which arguments a step had.
fn history(command: &[String], args: &[String]) -> String {
    let command = command.join(" ");
    if args.is_empty() { command } else { format!("|{} {} {command}", args.len(), args.join(" ")) }
}

fn host_config(i: &Instruction, host: &Value, stage: &Stage) -> Result<Value> {
    let mut host = host.clone();
    let mut mounts = Vec::new();
    for (name, value) in &i.flags {
        match name.as_str() {
            "network" if value == "default" => {}
            "network" => host["NetworkMode"] = json!(value),
            "security" if value == "sandbox" => {}
            "mount" => mounts.push(mount(i, value, stage)?),
            other => return Err(i.error(format!("unknown flag: {other}"))),
        }
    }
    if !mounts.is_empty() {
        host["Mounts"] = json!(mounts);
    }
    Ok(host)
}

/// `--mount=type=cache,target=/x`: a volume that all builds with this id share; `type=tmpfs`: memory.
fn mount(i: &Instruction, text: &str, stage: &Stage) -> Result<Value> {
    let get = |names: &[&str]| {
        text.split(',').filter_map(|p| p.split_once('=')).find(|(k, _)| names.contains(k)).map(|(_, v)| v.to_owned())
    };
    let target = get(&["target", "dst", "destination"]);
    let target = target.map(|t| config::workdir(&stage.config, &t)).ok_or_else(|| i.error("--mount has no target"));
    match get(&["type"]).as_deref() {
        Some("cache") => {
            let target = target?;
            let id = get(&["id"]).unwrap_or_else(|| target.clone());
            let name = format!("build-cache-{}", Digest::of(id.as_bytes()).short());
            Ok(json!({"Type": "volume", "Source": name, "Target": target}))
        }
        Some("tmpfs") => Ok(json!({"Type": "tmpfs", "Target": target?})),
        Some("secret" | "ssh") if get(&["required"]).is_none_or(|r| r == "false") => {
            // As with BuildKit when the client gives none: the step runs without.
            Ok(json!({"Type": "tmpfs", "Target": "/run/secrets"}))
        }
        kind => {
            let kind = kind.unwrap_or("bind");
            Err(i.error(format!(
                "--mount=type={kind} needs BuildKit: use COPY here, or `docker buildx create --driver docker-container`"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn check(text: &str, expected: &[&str], script: bool) {
        let i = parse(text).unwrap().instructions.remove(0);
        let (command, made) = command(&Config::new(), &i);
        assert_eq!((command, made.is_some()), (expected.iter().map(|s| (*s).to_owned()).collect(), script), "{text}");
    }

    #[test]
    fn commands_go_to_the_shell_unless_they_are_lists_or_scripts() {
        check("RUN echo a", &["/bin/sh", "-c", "echo a"], false);
        check("RUN [\"echo\", \"a\"]", &["echo", "a"], false);
        check("RUN <<EOF\necho a\necho b\nEOF", &["/bin/sh", "-c", "echo a\necho b\n"], false);
        check("RUN <<EOF\n#!/bin/awk -f\nx\nEOF", &["/dev/kraud-EOF"], true);
        check("RUN cat <<A <<B\n1\nA\n2\nB\n", &["/bin/sh", "-c", "cat <<A <<B\n1\nA\n2\nB"], false);
    }

    #[test]
    fn mounts_are_volumes_or_memory_and_what_needs_buildkit_is_said() {
        let stage = Stage::scratch("amd64");
        let host = |text: &str| host_config(&parse(text).unwrap().instructions[0], &json!({}), &stage);
        let cache = host("RUN --mount=type=cache,target=/root/.cache x").unwrap();
        assert_eq!(
            (&cache["Mounts"][0]["Type"], &cache["Mounts"][0]["Target"]),
            (&json!("volume"), &json!("/root/.cache"))
        );
        assert_eq!(host("RUN --network=none x").unwrap()["NetworkMode"], "none");
        assert!(host("RUN --mount=type=bind,target=/x x").unwrap_err().message.contains("needs BuildKit"));
        assert!(host("RUN --mount=type=secret,id=x,required=true x").is_err());
        assert!(host("RUN --other x").is_err());
    }
}
