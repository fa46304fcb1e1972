"""docker-py's main calls against the zone that DOCKER_HOST names: each function is a check, all of them run, the names of those
that fail are printed and make the exit status. With names as arguments, only these run."""

import io
import socket
import sys
import tarfile
import threading
import time
import traceback

import docker

client = docker.from_env(timeout=120)
IMAGE = "busybox"
LABEL = {"by": "docker-py"}
SLEEP = ["sh", "-c", "echo begun; exec sleep 600"]


def started(command=SLEEP, **options):
    return client.containers.run(IMAGE, command, detach=True, labels=LABEL, stop_signal="SIGKILL", **options)


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def run():
    assert client.containers.run(IMAGE, ["echo", "hello"], remove=True) == b"hello\n"
    both = client.containers.run(IMAGE, ["sh", "-c", "echo o; echo e >&2"], remove=True, stdout=True, stderr=True)
    assert sorted(both.split()) == [b"e", b"o"], both
    try:
        client.containers.run(IMAGE, ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
        raise AssertionError("no error")
    except docker.errors.ContainerError as error:
        assert error.exit_status == 3 and b"bad" in error.stderr, error
    try:
        client.containers.run("nosuch:image", "true")
        raise AssertionError("no error")
    except (docker.errors.ImageNotFound, docker.errors.APIError):
        pass


def logs_stream():
    c = started(["sh", "-c", "for i in 1 2 3; do echo line $i; done; sleep 1; echo last"])
    assert list(c.logs(stream=True, follow=True)) == [b"line 1\n", b"line 2\n", b"line 3\n", b"last\n"]
    assert c.wait()["StatusCode"] == 0
    assert c.logs(tail=1) == b"last\n"
    stamped = c.logs(timestamps=True).splitlines()
    first = stamped[0].split()[0].decode()
    assert c.logs(until=int(time.time()) - 3600) == b"", "until an hour ago there was nothing"
    assert first.endswith("Z") and len(stamped) == 4, stamped
    c.remove()


def exec_run():
    c = started()
    code, (out, err) = c.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True)
    assert (code, out, err) == (4, b"o\n", b"e\n"), (code, out, err)
    result = c.exec_run("sh -c 'echo $A; pwd; id -u'", environment={"A": "b"}, workdir="/tmp", user="nobody")
    assert result.output == b"b\n/tmp\n65534\n", result
    pieces = list(c.exec_run(["sh", "-c", "echo 1; sleep 1; echo 2"], stream=True).output)
    assert b"".join(pieces) == b"1\n2\n" and len(pieces) == 2, pieces
    sock = c.exec_run("cat", stdin=True, socket=True).output
    raw = getattr(sock, "_sock", sock)
    raw.sendall(b"through the socket\n")
    # The first eight bytes say which stream and how long.
    got = b""
    while len(got) < 8 + 19:
        got += raw.recv(100)
    assert got[0] == 1 and got[8:] == b"through the socket\n", got
    raw.close()
    ids = client.api.exec_create(c.id, ["true"])["Id"]
    client.api.exec_start(ids, detach=True)
    deadline = time.time() + 30
    while client.api.exec_inspect(ids)["Running"] or client.api.exec_inspect(ids)["ExitCode"] is None:
        assert time.time() < deadline, client.api.exec_inspect(ids)
    assert client.api.exec_inspect(ids)["ExitCode"] == 0
    tty = c.exec_run(["tty"], tty=True)
    assert tty.output.startswith(b"/dev/pts/"), tty
    c.remove(force=True)


def archives():
    c = started()
    assert c.put_archive("/tmp", tar_of({"a": b"one", "b": b"two"}))
    stream, stat = c.get_archive("/tmp/b")
    assert stat["name"] == "b" and stat["size"] == 3, stat
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        assert tar.extractfile("b").read() == b"two"
    changes = {change["Path"] for change in c.diff()}
    assert {"/tmp", "/tmp/a", "/tmp/b"} <= changes, changes
    try:
        c.get_archive("/nosuch")
        raise AssertionError("no error")
    except docker.errors.NotFound:
        pass
    names = tarfile.open(fileobj=io.BytesIO(b"".join(c.export()))).getnames()
    assert "tmp/a" in names and "bin/busybox" in names, names[:20]
    c.remove(force=True)


def images():
    saved = b"".join(client.images.get(IMAGE).save(named=True))
    loaded = client.images.load(saved)
    assert any("busybox:latest" in i.tags for i in loaded), loaded
    context = io.BytesIO(b"FROM busybox\nRUN echo built > /built\nCMD cat /built\n")
    image, log = client.images.build(fileobj=context, tag="by-docker-py:1", rm=True)
    assert any("Successfully tagged" in line.get("stream", "") for line in log)
    assert client.containers.run(image, remove=True) == b"built\n"
    assert image.tag("by-docker-py", "2")
    assert len(image.history()) >= 2
    names = [tag for i in client.images.list(name="by-docker-py") for tag in i.tags]
    assert sorted(names) == ["by-docker-py:1", "by-docker-py:2"], names
    try:
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN exit 5\n"), rm=True)
        raise AssertionError("no error")
    except docker.errors.BuildError as error:
        assert "returned a non-zero code: 5" in str(error), error
    for tag in ("1", "2"):
        client.images.remove(f"by-docker-py:{tag}", force=True)
    c = started()
    made = c.commit("by-docker-py", "3", message="said", changes="ENV A=b")
    assert "A=b" in made.attrs["Config"]["Env"], made.attrs
    c.remove(force=True)
    client.images.remove("by-docker-py:3")


def volumes():
    v = client.volumes.create("by-docker-py", labels=LABEL)
    assert client.volumes.get("by-docker-py").attrs["Labels"] == LABEL
    client.containers.run(IMAGE, ["sh", "-c", "echo kept > /v/f"], remove=True, volumes={"by-docker-py": {"bind": "/v", "mode": "rw"}})
    mount = docker.types.Mount("/w", "by-docker-py", type="volume", read_only=True)
    assert client.containers.run(IMAGE, ["cat", "/w/f"], remove=True, mounts=[mount]) == b"kept\n"
    assert [x.name for x in client.volumes.list(filters={"label": "by=docker-py"})] == ["by-docker-py"]
    v.remove()
    assert client.volumes.prune(filters={"label": "nosuch"})["SpaceReclaimed"] == 0


def networks():
    pool = docker.types.IPAMPool(subnet="10.78.9.0/24", gateway="10.78.9.1")
    n = client.networks.create("by-docker-py", driver="bridge", labels=LABEL, ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    c = started(network="by-docker-py", name="by-docker-py-1")
    c.reload()
    assert c.attrs["NetworkSettings"]["Networks"]["by-docker-py"]["NetworkID"] == n.id
    n.reload()
    assert [x.name for x in n.containers] == ["by-docker-py-1"], n.containers
    found = client.containers.run(IMAGE, ["ping", "-c", "1", "-W", "5", "by-docker-py-1"], remove=True, network="by-docker-py")
    assert b"1 packets received" in found, found
    n.disconnect(c)
    n.connect(c, aliases=["again"], ipv4_address="10.78.9.77")
    c.reload()
    assert c.attrs["NetworkSettings"]["Networks"]["by-docker-py"]["IPAddress"] == "10.78.9.77"
    c.remove(force=True)
    n.remove()
    try:
        client.networks.get("by-docker-py")
        raise AssertionError("no error")
    except docker.errors.NotFound:
        pass


def events():
    since = int(time.time()) - 1
    seen, live = [], client.events(decode=True, filters={"label": "by=docker-py", "type": "container"})

    def listen():
        for event in live:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    c = started(["true"])
    c.wait()
    c.remove()
    listener.join(30)
    assert not listener.is_alive() and seen == ["create", "start", "die", "destroy"], seen
    past = client.events(since=since, until=int(time.time()) + 1, decode=True, filters={"container": c.id})
    actions = [event["Action"] for event in past if event["Type"] == "container"]
    assert actions == ["create", "start", "die", "destroy"], actions


def stats_and_top():
    c = started()
    stream = c.stats(stream=True, decode=True)
    samples = [next(stream), next(stream)]
    stream.close()
    assert samples[1]["memory_stats"]["usage"] > 0 and samples[1]["precpu_stats"]["cpu_usage"]["total_usage"] > 0, samples
    once = c.stats(stream=False)
    assert once["cpu_stats"]["online_cpus"] >= 1 and once["id"] == c.id, once
    assert any("sleep" in " ".join(line) for line in c.top()["Processes"]), c.top()
    c.remove(force=True)


def life():
    c = client.containers.create(IMAGE, SLEEP, labels=LABEL, name="by-docker-py-life", tty=True)
    assert c.status == "created"
    c.start()
    c.reload()
    assert c.status == "running"
    c.resize(30, 100)
    c.pause()
    c.reload()
    assert c.status == "paused"
    c.unpause()
    c.rename("by-docker-py-renamed")
    assert client.containers.get("by-docker-py-renamed").id == c.id
    c.update(restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    c.restart(timeout=0)
    c.kill()
    assert c.wait(timeout=60)["StatusCode"] == 137
    c.start()
    c.stop(timeout=0)
    c.reload()
    assert c.status == "exited" and c.attrs["State"]["ExitCode"] == 137, c.attrs["State"]
    assert [x.id for x in client.containers.list(all=True, filters={"label": "by=docker-py"})] == [c.id]
    c.remove()


def attach():
    c = client.containers.create(IMAGE, ["sh", "-c", "read x; echo got $x; echo err >&2"], stdin_open=True, labels=LABEL)
    sock = c.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    raw = getattr(sock, "_sock", sock)
    c.start()
    raw.sendall(b"typed\n")
    got = b""
    while not (b"got typed\n" in got and b"err\n" in got):
        piece = raw.recv(4096)
        assert piece, got
        got += piece
    assert got[0] == 1, got
    assert c.wait()["StatusCode"] == 0
    c.remove()
    c = started(["sh", "-c", "echo one; echo two >&2"])
    c.wait()
    out = dict.fromkeys(["out", "err"], b"")
    for o, e in [c.attach(logs=True, demux=True)]:
        out["out"] += o or b""
        out["err"] += e or b""
    assert out == {"out": b"one\n", "err": b"two\n"}, out
    c.remove()


def options():
    c = started(
        mem_limit="128m", nano_cpus=500_000_000, pids_limit=50, cap_drop=["ALL"], cap_add=["NET_BIND_SERVICE"], read_only=True,
        tmpfs={"/scratch": "size=1m"}, ports={"80/tcp": None, "81/tcp": ("127.0.0.1", 18993)}, extra_hosts={"one": "1.2.3.4"},
        dns=["9.9.9.9"], hostname="host1", domainname="example.test", init=True, sysctls={"net.core.somaxconn": "1024"},
        ulimits=[docker.types.Ulimit(name="nofile", soft=1024, hard=2048)], shm_size="32m", restart_policy={"Name": "always"},
        healthcheck={"test": ["CMD", "true"], "interval": 1_000_000_000},
        log_config=docker.types.LogConfig(type="json-file", config={"max-size": "1m"}),
    )
    c.reload()
    host = c.attrs["HostConfig"]
    assert host["Memory"] == 128 << 20 and host["NanoCpus"] == 500_000_000 and host["ReadonlyRootfs"] and host["Init"], host
    assert c.ports["81/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "18993"}] and c.ports["80/tcp"], c.ports
    inside = c.exec_run(["sh", "-c", "hostname; ulimit -n; grep 1.2.3.4 /etc/hosts; cat /proc/sys/net/core/somaxconn; touch /x; touch /scratch/x"])
    assert b"host1" in inside.output and b"1024" in inside.output and b"Read-only" in inside.output, inside
    deadline = time.time() + 30
    while c.health != "healthy":
        assert time.time() < deadline, c.health
        time.sleep(0.2)
        c.reload()
    c.remove(force=True)


def system():
    assert client.ping()
    assert client.version()["ApiVersion"] == "1.51" or float(client.version()["ApiVersion"]) > 1.4
    assert client.info()["OSType"] == "linux"
    assert {"Containers", "Images", "Volumes"} <= set(client.df())


def many():
    """200 containers: how long they take to be made, listed and removed."""
    begun = time.time()
    made = [client.containers.create(IMAGE, SLEEP, labels={"many": "1"}, name=f"by-docker-py-many-{i}") for i in range(200)]
    created = time.time() - begun
    begun = time.time()
    listed = client.api.containers(all=True, filters={"label": "many"})
    took = time.time() - begun
    begun = time.time()
    alone = client.api.containers(all=True, filters={"label": "nosuch"})
    one = time.time() - begun
    begun = time.time()
    for c in made:
        c.remove()
    print(f"     200 made in {created:.1f} s, listed in {took:.2f} s (none in {one:.2f} s), removed in {time.time() - begun:.1f} s")
    assert len(listed) == 200 and alone == [] and took < 5, took


def clean():
    for label in ("by=docker-py", "many=1"):
        for c in client.containers.list(all=True, filters={"label": label}):
            c.remove(force=True, v=True)
    for n in client.networks.list(names=["by-docker-py"]):
        n.remove()
    for v in client.volumes.list(filters={"label": "by=docker-py"}):
        v.remove()


CHECKS = [system, run, logs_stream, exec_run, archives, images, volumes, networks, events, stats_and_top, life, attach, options, many]


def main():
    socket.setdefaulttimeout(120)
    failed = []
    clean()
    for check in CHECKS:
        if len(sys.argv) > 1 and check.__name__ not in sys.argv[1:]:
            continue
        begun = time.time()
        try:
            check()
            print(f"ok   {check.__name__} {time.time() - begun:.1f} s", flush=True)
        except Exception:
            failed.append(check.__name__)
            print(f"FAIL {check.__name__}", flush=True)
            traceback.print_exc(file=sys.stdout)
            clean()
    clean()
    print(f"{len(failed)} of {len(CHECKS)} failed: {' '.join(failed)}")
    sys.exit(bool(failed))


main()
