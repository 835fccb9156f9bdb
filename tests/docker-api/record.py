#!/usr/bin/env python3
"""Runs a script of requests against a Docker Engine API and writes down what the answers look like: status, type, shape.

    record.py --socket SOCKET [--registry HOST:PORT] [--out FILE]      against a server that runs and has nothing yet
    record.py --dockerd --out dockerd.json                             against a dockerd of its own, in namespaces of its own

The script is requests.json beside this file, one request a line:

    as      its name                               query   parameters; what is not text is sent as JSON
    ask     method and path                        body    a JSON document     tar   a tar of these files
    keep    {name: where in the answer}            raw     text (of type kind) send  bytes that were kept
    bytes   name for the whole answer              auth    a document for X-Registry-Auth
    until   what the answer must have, or look like, before the script goes on

Names that were kept stand for their values as {name} in later requests. A shape has the keys of objects, and for values:
their type, and for text whether it is empty, a time or an id. Maps whose keys are data are one entry, `*`; lists are what all
their entries have, a key that some lack with a question mark.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = "/v1.41"
# Keys of maps whose own keys are data.
MAPS = set("Annotations AuxiliaryAddresses Bindings Containers Data DriverOpts ExposedPorts IndexConfigs Internal Labels Networks networks "
           "Options Options2 PortBindings Ports Runtimes Status Storage StorageOpt Sysctls Tmpfs Volumes Config.Options "
           "LogConfig.Config io_service stats Attributes".split())
# What depends on the host: its security modules, its cgroup version, what its disks count.
LABELS = {"AppArmorProfile", "ProcessLabel", "MountLabel"}
OF_VERSION = {"max_usage", "failcnt"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")


def text(value):
    """What kind of text it is."""
    if value == "":
        return "empty"
    if value == "0001-01-01T00:00:00Z":
        return "no time"
    if TIME.match(value):
        return "time"
    if re.match(r"sha256:[0-9a-f]{64}$", value):
        return "digest"
    if re.match(r"[0-9a-f]{64}$", value):
        return "id"
    return "text"


def shape(value, key="", above=""):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if key in LABELS or key.endswith("_recursive"):
        return "any " + ("text" if key in LABELS else "list")
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [merged([shape(v) for v in value])] if value else []
    if key in MAPS or f"{above}.{key}" in MAPS:
        return {"*": merged([shape(v) for v in value.values()])} if value else {}
    return {k: shape(v, k, key) for k, v in sorted(value.items()) if k not in OF_VERSION}


def merged(shapes):
    """What all of these are."""
    if all(isinstance(s, dict) for s in shapes):
        names = {k.rstrip("?") for s in shapes for k in s}
        out = {}
        for name in sorted(names):
            have = [s[k] for s in shapes for k in (name, name + "?") if k in s]
            everywhere = len(have) == len(shapes) and not any(name + "?" in s for s in shapes)
            out[name if everywhere else name + "?"] = merged(have)
        return out
    if all(isinstance(s, list) for s in shapes):
        inner = [s[0] for s in shapes if s]
        return [merged(inner)] if inner else []
    flat = {s if isinstance(s, str) else json.dumps(s, sort_keys=True) for s in shapes}
    words = {w for s in flat for w in s.split(" or ")}
    return " or ".join(sorted(words)) if len(words) > 1 else shapes[0]


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("docker", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def tar_of(files):
    """A tar; names that end in a slash are directories, BUSYBOX is the host's static program."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mode, entry.mtime = 0o755, 1_600_000_000
            data = b""
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            elif content.startswith("->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, content[2:]
            else:
                data = Path("/bin/busybox").read_bytes() if content == "BUSYBOX" else content.encode()
                entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def documents(body):
    """One JSON document, or several one after the other."""
    decoder, rest, out = json.JSONDecoder(), body.decode().strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        out.append(value)
        rest = rest[end:].lstrip()
    return out


def frames(body):
    """The streams that multiplexed output is of; None if it is none."""
    seen, at = set(), 0
    while at < len(body):
        if len(body) < at + 8 or body[at] > 2 or body[at + 1:at + 4] != b"\0\0\0":
            return None
        seen.add(("stdin", "stdout", "stderr")[body[at]])
        at += 8 + int.from_bytes(body[at + 4:at + 8], "big")
    return sorted(seen)


def looks(step, answer, body):
    """What is written down of an answer."""
    out = {"status": answer.status, "type": answer.getheader("Content-Type")}
    stat = answer.getheader("X-Docker-Container-Path-Stat")
    if stat:
        out["stat"] = shape(json.loads(base64.b64decode(stat)))
    if not body:
        out["body"] = "nothing"
        return out
    if out["type"] == "application/x-tar":
        out["body"] = "a tar"
        return out
    try:
        found = documents(body)
    except ValueError:
        streams = frames(body)
        out["body"] = "text" if streams is None else "frames of " + " and ".join(streams)
        return out
    if step["as"].startswith("events"):
        # When a command ends beside others nobody knows.
        out["order"] = [f"{e['Type']} {e['Action'].strip()}" for e in found if "Type" in e and e["Action"] != "exec_die"]
    stream = len(found) > 1 or (found and isinstance(found[0], dict) and {"status", "stream", "errorDetail"} & set(found[0]))
    if stream:
        out["body"] = {"stream": merged([shape(d) for d in found])}
    else:
        out["body"] = shape(found[0])
        if isinstance(found[0], dict) and set(found[0]) == {"message"}:
            out["said"] = found[0]["message"].strip()
    return out


class Run:
    def __init__(self, path, registry):
        self.path = path
        self.kept = {"registry": registry, "now": str(int(time.time()) - 1)}

    def fill(self, value):
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda m: self.kept.get(m[1], m[0]), value)
        if isinstance(value, list):
            return [self.fill(v) for v in value]
        if isinstance(value, dict):
            return {self.fill(k): self.fill(v) for k, v in value.items()}
        return value

    def step(self, step):
        self.kept["later"] = f"{time.time():.9f}"
        method, path = self.fill(step["ask"]).split(" ")
        query = self.fill(step.get("query", {}))
        if query:
            path += "?" + urllib.parse.urlencode({k: v if isinstance(v, str) else json.dumps(v) for k, v in query.items()})
        body, kind = None, None
        if "body" in step:
            body, kind = json.dumps(self.fill(step["body"])).encode(), "application/json"
        elif "tar" in step:
            body, kind = tar_of(step["tar"]), "application/x-tar"
        elif "send" in step:
            body, kind = self.kept[step["send"]], "application/x-tar"
        elif "raw" in step:
            body, kind = step["raw"].encode(), step.get("kind", "application/json")
        head = {"Content-Type": kind} if kind else {}
        if "auth" in step:
            head["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(step["auth"]).encode()).decode()
        connection = Connection(self.path)
        with contextlib.closing(connection):
            full = path if path.startswith("/v") and path[2].isdigit() else VERSION + path
            # A server that refuses need not read the whole body, and has answered all the same.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, full, body, head)
            answer = http.client.HTTPResponse(connection.sock, method=method)
            answer.begin()
            got = answer.read()
        if "bytes" in step:
            self.kept[step["bytes"]] = got
        for name, where in step.get("keep", {}).items():
            value = json.loads(got)
            for key in where.split("."):
                value = value[int(key)] if isinstance(value, list) else value.get(key, "")
            self.kept[name] = value
        return looks(step, answer, got), got

    def settled(self, step):
        """The answer, asked for again until what the step waits for has come."""
        deadline = time.monotonic() + 30
        while True:
            looked, got = self.step(step)
            wanted = step.get("until")
            come = looked["body"] == wanted if isinstance(wanted, str) else all(json.loads(got).get(k) == v for k, v in (wanted or {}).items())
            if wanted is None or come or time.monotonic() > deadline:
                return looked, got
            time.sleep(0.02)

    def all(self, script, verbose):
        out = {}
        for step in script:
            began = time.monotonic()
            try:
                out[step["as"]], got = self.settled(step)
            except Exception as e:
                raise RuntimeError(f"{step['as']}: {e!r}") from e
            if verbose:
                print(f"{time.monotonic() - began:6.2f} {step['as']}: {out[step['as']]['status']} {got[:int(verbose)]!r}", file=sys.stderr)
        return out


def start_dockerd(work):
    """dockerd and a registry in namespaces that this process is in already."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    config = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: 127.0.0.1:5000}}\n"
    (work / "registry.yml").write_text(config)
    log = open(work / "log", "wb")
    started = [subprocess.Popen(["docker-registry", "serve", work / "registry.yml"], stdout=log, stderr=log)]
    command = ["dockerd", "--host", f"unix://{work}/sock", "--data-root", work / "data", "--exec-root", work / "exec", "--pidfile", work / "pid"]
    started.append(subprocess.Popen([str(c) for c in command], stdout=log, stderr=log))
    for _ in range(300):
        with contextlib.suppress(OSError):
            connection = Connection(str(work / "sock"))
            connection.request("GET", "/version")
            return started, json.loads(connection.getresponse().read())
        time.sleep(0.2)
    raise RuntimeError(f"dockerd does not start: {(work / 'log').read_text()}")


def record_dockerd(args, script):
    if "DOCKER_API_INSIDE" not in os.environ:
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        done = subprocess.run([*command, sys.executable, *sys.argv], env={**os.environ, "DOCKER_API_INSIDE": "1"}, check=False)
        sys.exit(done.returncode)
    work = Path(tempfile.mkdtemp(prefix="docker-api-"))
    started = []
    try:
        started, version = start_dockerd(work)
        of = {"engine": "dockerd", "version": version["Version"], "api": version["ApiVersion"]}
        return {**of, "answers": Run(str(work / "sock"), "127.0.0.1:5000").all(script, args.verbose)}
    finally:
        for child in reversed(started):
            child.terminate()
            child.wait()
        shutil.rmtree(work, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--registry", default="127.0.0.1:1")
    parser.add_argument("--dockerd", action="store_true")
    parser.add_argument("--out", default="/dev/stdout")
    parser.add_argument("--verbose", type=int, default=0, help="also print this much of each answer")
    args = parser.parse_args()
    script = [json.loads(line.rstrip().rstrip(",")) for line in (HERE / "requests.json").read_text().splitlines() if line.startswith("{")]
    names = [s["as"] for s in script]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        sys.exit(f"names that are there twice: {sorted(twice)}")
    out = record_dockerd(args, script) if args.dockerd else {"answers": Run(args.socket, args.registry).all(script, args.verbose)}
    answers = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in out.pop("answers").items())
    head = "".join(f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in out.items())
    Path(args.out).write_text(f"{{\n{head}\"answers\": {{\n{answers}\n}}\n}}\n")


main()
