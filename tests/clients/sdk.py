"""The Python SDK (docker on PyPI) against `dhow serve`. DOCKER_HOST names the server, REGISTRY one with a password."""

import io
import os
import socket
import tarfile
import threading
import time

import docker
import websocket

c = docker.from_env()
quiet = {"network_mode": "none"}


def refused(kind, status, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except docker.errors.APIError as e:
        assert type(e) is kind and status in (e.status_code, None), (type(e), e.status_code, e.explanation)
        return e.explanation
    raise AssertionError(f"{call} succeeded")


def eventually(what, seconds=60):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, "it does not come"
        time.sleep(0.05)


def containers():
    assert c.ping() and c.version()["ApiVersion"] == "1.50" and c.info()["ContainersRunning"] == 0
    assert c.containers.run("busybox", ["echo", "hi"], remove=True, **quiet) == b"hi\n"
    try:
        c.containers.run("busybox", ["sh", "-c", "echo err >&2; exit 3"], remove=True, **quiet)
        raise AssertionError("it must fail")
    except docker.errors.ContainerError as e:
        assert (e.exit_status, e.stderr) == (3, b"err\n")
    refused(docker.errors.ImageNotFound, 404, c.containers.create, "nosuchimage:1")
    refused(docker.errors.NotFound, 404, c.containers.get, "absent")
    assert "not found" in refused(docker.errors.APIError, 400, c.containers.run, "busybox", "nothing", name="bad", **quiet)
    c.containers.get("bad").remove()

    loop = "i=0; trap 'exit 4' TERM; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"
    box = c.containers.run("busybox", ["sh", "-c", loop], detach=True, name="box", labels={"a": "b", "c": "d"},
                           mem_limit="64m", ports={"80/tcp": None})
    box.reload()
    assert box.status == "running" and box.labels["a"] == "b" and box.ports["80/tcp"], box.attrs
    refused(docker.errors.APIError, 409, c.containers.create, "busybox", "true", name="box")
    assert [b.name for b in c.containers.list(filters={"label": ["a=b", "c"]})] == ["box"]
    assert c.containers.list(filters={"label": ["a=b", "none"]}) == []
    executes(box)
    logs = box.logs(stream=True, follow=True, tail=1)
    assert next(logs).startswith(b"line ") and next(logs).startswith(b"line ")
    logs.close()
    assert b"Z line" in box.logs(tail=1, timestamps=True)
    assert any("sleep" in row[-1] or "sh" in row[-1] for row in box.top()["Processes"])
    stats = box.stats(stream=True, decode=True)
    first, second = next(stats), next(stats)
    assert second["preread"] == first["read"] and second["memory_stats"]["limit"] == 64 << 20
    copies(box)
    assert {"Path": "/tmp/f", "Kind": 1} in box.diff()
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    box.rename("other")
    box.update(mem_limit="128m", memswap_limit="128m")

    seen = []
    events = c.events(decode=True, filters={"container": box.id})
    listener = threading.Thread(target=lambda: seen.extend(e["Action"] for e in iter(lambda: next(events, None), None)))
    listener.start()
    time.sleep(0.5)
    box.stop(timeout=20)
    assert box.wait() == {"StatusCode": 4, }
    since = int(time.time()) - 600
    eventually(lambda: any(e["Action"] == "stop" for e in c.events(decode=True, since=since, until=int(time.time()) + 1,
                                                                  filters={"container": box.id})))
    eventually(lambda: "stop" in seen)
    events.close()
    listener.join(20)
    assert [a for a in seen if a in ("kill", "die", "stop")] == ["kill", "die", "stop"], seen
    image = box.commit("made", "1")
    assert image.tags == ["made:1"]
    image = box.commit("made", "2", conf={"Cmd": ["other"], "Env": ["NEW=1"], "Labels": {"a": "b"}}, changes="WORKDIR /tmp")
    config, before = image.attrs["Config"], box.attrs["Config"]
    assert (config["Cmd"], config["Labels"]["a"], config["WorkingDir"]) == (["other"], "b", "/tmp"), config
    assert config.get("Entrypoint") == before["Entrypoint"] and set(config["Env"]) == {"NEW=1", *(before["Env"] or [])}, config
    box.remove(v=True)
    assert c.containers.list(all=True) == []


def executes(box):
    done = box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    assert (done.exit_code, done.output) == (4, (b"out\n", b"err\n")), done
    # Where it is read late, both lines come in one piece.
    assert b"".join(box.exec_run(["sh", "-c", "echo a; sleep 0.5; echo b"], stream=True).output) == b"a\nb\n"
    both = box.exec_run("cat", stdin=True, socket=True).output
    both._sock.sendall(b"typed\n")
    both._sock.shutdown(socket.SHUT_WR)
    assert both.read() == b"\x01\0\0\0\0\0\0\x06typed\n"
    made = c.api.exec_create(box.id, ["sh", "-c", "read go; stty size; exit 6"], tty=True, stdin=True)
    both = c.api.exec_start(made, tty=True, socket=True)
    c.api.exec_resize(made, 33, 77)
    both._sock.sendall(b"go\n")
    assert b"33 77" in both.read()
    assert c.api.exec_inspect(made)["ExitCode"] == 6
    assert box.exec_run("nothing").exit_code == 127


def copies(box):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("f")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    assert box.put_archive("/tmp", archive.getvalue())
    pieces, stat = box.get_archive("/tmp/f")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        assert tar.extractfile("f").read() == b"abc"
    assert stat["size"] == 3 and stat["name"] == "f"
    refused(docker.errors.NotFound, 404, box.get_archive, "/none")


def attaches():
    box = c.containers.create("busybox", ["cat"], stdin_open=True, **quiet)
    both = box.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    box.start()
    both._sock.sendall(b"through\n")
    both._sock.shutdown(socket.SHUT_WR)
    assert both.read() == b"\x01\0\0\0\0\0\0\x08through\n"
    assert box.wait(timeout=60)["StatusCode"] == 0
    box.remove()
    # By websocket, which the SDK itself cannot do over a Unix socket.
    box = c.containers.run("busybox", ["sh", "-c", "read x; echo got $x"], stdin_open=True, detach=True, **quiet)
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(os.environ["DOCKER_HOST"].removeprefix("unix://"))
    url = f"ws://d/v1.50/containers/{box.id}/attach/ws?stdin=1&stdout=1&stream=1"
    ws = websocket.create_connection(url, socket=raw)
    ws.send(b"this\n")
    said = ws.recv()
    assert said in (b"got this\n", "got this\n"), said
    ws.shutdown()
    box.remove(force=True)


def waits():
    box = c.containers.create("busybox", ["sh", "-c", "exit 5"], name="waited", **quiet)
    ends = []
    for condition, act in [("next-exit", box.start), ("removed", box.remove)]:
        waiter = threading.Thread(target=lambda: ends.append(box.wait(condition=condition)["StatusCode"]))
        waiter.start()
        time.sleep(0.3)
        act()
        waiter.join(60)
    assert ends[0] == 5 and len(ends) == 2, ends


def networks_and_volumes():
    pool = docker.types.IPAMPool(subnet="10.88.77.0/24")
    net = c.networks.create("sdknet", labels={"k": "v"}, ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    assert [n.name for n in c.networks.list(filters={"label": "k=v"})] == ["sdknet"]
    vol = c.volumes.create("sdkvol", labels={"q": "r"})
    assert vol.attrs["Labels"] == {"q": "r"} and [v.name for v in c.volumes.list()] == ["sdkvol"]
    box = c.containers.run("busybox", ["sleep", "1000"], detach=True, volumes={"sdkvol": {"bind": "/v", "mode": "rw"}})
    net.connect(box, aliases=["alias"], ipv4_address="10.88.77.9")
    net.reload()
    assert net.attrs["Containers"][box.id]["IPv4Address"] == "10.88.77.9/24"
    assert "in use" in refused(docker.errors.APIError, 409, vol.remove)
    assert "active endpoints" in refused(docker.errors.APIError, None, net.remove)
    net.disconnect(box)
    box.remove(force=True)
    vol.remove()
    net.remove()
    refused(docker.errors.NotFound, 404, c.volumes.get, "sdkvol")


def images():
    assert {"Id", "Created", "CreatedBy", "Tags", "Size", "Comment"} <= set(c.images.get("busybox").history()[0])
    data = b"".join(c.images.get("made:1").save(named=True))
    c.images.remove("made:1")
    refused(docker.errors.ImageNotFound, 404, c.images.get, "made:1")
    assert c.images.load(data)[0].tags == ["made:1"]
    refused(docker.errors.APIError, 501, c.images.build, fileobj=io.BytesIO(b"FROM busybox"))
    refused(docker.errors.APIError, 501, lambda: c.swarm.init())
    if "REGISTRY" in os.environ:
        registry()
    c.images.remove("made:1")
    for pruned in [c.containers.prune(), c.networks.prune(), c.volumes.prune(), c.images.prune()]:
        assert isinstance(pruned, dict), pruned


def registry():
    host, user, password = os.environ["REGISTRY"].split("|")
    name, login = f"{host}/pushed", {"username": user, "password": password}
    c.images.get("made:1").tag(name, "1")
    said = list(c.images.push(name, tag="1", stream=True, decode=True))
    assert any("error" in line for line in said), said
    said = list(c.images.push(name, tag="1", stream=True, decode=True, auth_config=login))
    assert not any("error" in line for line in said) and any("aux" in line for line in said), said
    c.images.remove(f"{name}:1")
    try:
        c.images.pull(name, tag="1")
        raise AssertionError("pulled without a password")
    except docker.errors.APIError:
        pass
    assert c.images.pull(name, tag="1", auth_config=login).tags.count(f"{name}:1") == 1
    assert c.images.get_registry_data(f"{name}:1", auth_config=login).id.startswith("sha256:")
    assert c.login(user, password, registry=host)["Status"] == "Login Succeeded"
    refused(docker.errors.APIError, 401, c.login, user, "wrong", registry=host, reauth=True)
    c.images.remove(f"{name}:1")


containers()
attaches()
waits()
networks_and_volumes()
images()
print("all of it")
