//! Images as a docker user sees it: build, commit, import, save and load.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, Said, busybox, docker, docker_command, docker_with_input, folder, wait_for};
use std::path::Path;

/// `docker build` as clients without BuildKit do it.
fn build(args: &[&str]) -> Said {
    let mut command = docker_command(&[&["build"], args].concat());
    command.env("DOCKER_BUILDKIT", "0").output().unwrap().into()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

const DOCKERFILE: &str = r#"
ARG BASE=busybox
FROM ${BASE} AS build
ARG WHO=nobody
WORKDIR /src/work
COPY --chmod=0640 src/ .
RUN <<END
mkdir out
echo "hello $WHO" > out/greeting
ln out/greeting out/second
rm /etc/group
touch /etc/passwd
END
FROM scratch AS unused
COPY none /

FROM busybox
COPY --from=build --chown=7:8 /src/work/out /app
COPY <<conf <<more /etc/app/
key=${KEY}
conf
second
more
ENV KEY=value
RUN ["sh", "-c", "id -u > /uid; cat /app/greeting"]
USER 65534
HEALTHCHECK --interval=5s CMD true
ENTRYPOINT ["cat"]
CMD ["/app/greeting"]
"#;

#[test]
fn i01_a_dockerfile_is_built_in_microvms_and_again_from_the_cache() {
    busybox();
    let dir = folder("build");
    write(
        &dir,
        &[("Dockerfile", DOCKERFILE), ("src/a.txt", "a"), ("src/secret", "s"), (".dockerignore", "src/secret\n")],
    );
    let path = dir.to_str().unwrap();
    let args = ["-t", "built", "--build-arg", "WHO=zone", "--label", "made=here", path];
    let first = build(&args).ok();
    assert!(first.contains("Successfully tagged built:latest") && first.contains("hello zone"), "{first}");
    assert!(!first.contains("unused"), "a stage that nothing needs was built: {first}");
    assert_eq!(docker(&["run", "--rm", "built"]).ok(), "hello zone\n");
    let facts = docker(&[
        "run",
        "--rm",
        "--entrypoint",
        "sh",
        "built",
        "-c",
        "stat -c '%u:%g %h' /app/second; cat /uid /etc/app/conf; id -u",
    ]);
    assert_eq!(facts.ok(), "7:8 1\n0\nkey=\n65534\n");
    let label = docker(&["inspect", "-f", "{{.Config.Labels.made}} {{.Config.Env}}", "built"]).ok();
    assert!(label.starts_with("here ") && label.contains("KEY=value"), "{label}");
    let id = docker(&["inspect", "-f", "{{.Id}}", "built"]).ok();
    let again = build(&args).ok();
    assert_eq!(again.matches("Using cache").count(), again.matches("Step ").count() - 2, "{again}");
    assert_eq!(docker(&["inspect", "-f", "{{.Id}}", "built"]).ok(), id);
    let ignored = build(&["-q", "--target", "build", path]).ok();
    let seen = docker(&["run", "--rm", ignored.trim(), "ls", "/src/work", "/etc"]).ok();
    assert!(seen.contains("a.txt") && !seen.contains("secret") && !seen.contains("group"), "{seen}");
    // The last step's container goes while the answer is on its way.
    wait_for("the end of the steps' containers", || {
        let left = docker(&["ps", "-aq", "--filter", "label=io.kraudbox.build"]).ok();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn i02_a_step_that_fails_says_which_and_buildkit_is_told_what_to_do() {
    busybox();
    let dir = folder("build-bad");
    write(&dir, &[("Dockerfile", "FROM busybox\nRUN echo before; exit 3\n")]);
    let failed = build(&[dir.to_str().unwrap()]);
    assert_ne!(failed.code, 0);
    assert!(failed.err.contains("returned a non-zero code: 3"), "{}", failed.err);
    write(&dir, &[("Dockerfile", "FROM busybox\nCOPY nothing /\n")]);
    let failed = build(&[dir.to_str().unwrap()]);
    assert!(failed.err.contains("nothing") && failed.code != 0, "{}", failed.err);
}

#[test]
fn i03_a_containers_changes_become_an_image() {
    busybox();
    let _clean = CleanUp::containers(&["change"]);
    let script = "rm /etc/group; mkdir /new; echo x > /new/file; chmod 700 /home; exec sleep 600";
    let _ = docker(&["run", "-d", "--name", "change", "busybox", "sh", "-c", script]).ok();
    wait_for("the change", || {
        let said = docker(&["exec", "change", "cat", "/new/file"]);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
    let id = docker(&["commit", "-m", "changed", "-c", "CMD [\"cat\",\"/new/file\"]", "change", "changed:1"]).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(docker(&["run", "--rm", "changed:1"]).ok(), "x\n");
    let seen = docker(&["run", "--rm", "changed:1", "sh", "-c", "ls /etc; stat -c %a /home /tmp"]).ok();
    assert_eq!(seen, "hostname\nhosts\npasswd\nresolv.conf\n700\n1777\n");
    assert!(docker(&["history", "changed:1"]).ok().contains("changed"));
    assert_eq!(docker(&["inspect", "-f", "{{.State.Status}}", "change"]).ok(), "running\n");
}

#[test]
fn i06_a_root_file_system_is_imported_and_an_image_saved_and_loaded() {
    busybox();
    let archive = docker_command(&["save", "busybox"]).output().unwrap().stdout;
    let said = docker_with_input(&["load"], &archive).ok();
    assert!(said.contains("Loaded image: busybox:latest"), "{said}");
    let cut = docker_with_input(&["load"], &archive[..archive.len() / 2]);
    assert!(cut.code != 0 && cut.err.contains("ends"), "{} {}", cut.out, cut.err);
}
