"""The rows of networks and volumes: user-defined networks, throughput, and writes that must last.

Programs that measure are the host's own, run inside a container's network namespace by nsenter(1): both engines are asked by the
same client. Rates are medians of turns in which every engine takes its part.
"""

import json
import operator
import re
import statistics
import subprocess
import time
from pathlib import Path

import fixtures
import machine
from report import Result

PACKAGES = {"iperf3": "iperf3", "wrk": "wrk", "gcc": "gcc", "nsenter": "util-linux", "mke2fs": "e2fsprogs"}
TURNS = 3
SECONDS = 3
# Of writes that must last: other work on the host's disk comes and goes, so many short turns, each compared in itself.
WRITE_TURNS = 11
WRITE_SECONDS = 1
NETWORK = "bench"
# Of the host; one for each engine, so that neither waits for the other's.
PORTS = {"dhow": 18080, "docker": 18081}


def engines(bench):
    return (bench.dhow, bench.docker)


def output(*argv):
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def within(pid, *argv):
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *argv]


class World:
    """A network with two containers on it, of each engine; the first publishes a port."""

    def __init__(self, bench, image, *command, inside=5201):
        self.bench, self.image, self.command, self.inside = bench, image, command, inside

    def __enter__(self):
        for engine in engines(self.bench):
            engine("network", "create", NETWORK)
            published = f"127.0.0.1:{PORTS[engine.name]}:{self.inside}"
            engine("run", "-d", "--name", "one", "--network", NETWORK, "-p", published, self.image, *self.command)
            engine("run", "-d", "--name", "two", "--network", NETWORK, fixtures.TINY, "sleep", "600")
        return self

    def __exit__(self, *_):
        for engine in engines(self.bench):
            engine("rm", "-f", "one", "two", check=False)
            engine("network", "rm", NETWORK, check=False)

    @staticmethod
    def pid(engine, name):
        return engine("inspect", "-f", "{{.State.Pid}}", name)

    @staticmethod
    def address(engine, name):
        return engine("inspect", "-f", "{{(index .NetworkSettings.Networks \"" + NETWORK + "\").IPAddress}}", name)


def turns(bench, row, measure):
    """Medians by engine's name of `measure(engine)`."""
    seen = {}
    for _ in range(TURNS):
        machine.settle()
        for engine in engines(bench):
            seen.setdefault(engine.name, []).append(measure(engine))
    medians = {name: statistics.median(values) for name, values in seen.items()}
    bench.raw[row] = {"values": seen, "medians": medians}
    print(f"{row}: " + ", ".join(f"{name} {value:.0f}" for name, value in medians.items()), flush=True)
    return medians


def network(bench):
    commands = {}
    for engine in engines(bench):
        bench.have_tiny(engine)
        engine("network", "create", NETWORK)
        published = f"127.0.0.1:{PORTS[engine.name]}:80"
        commands[engine.name] = engine.argv("run", "--rm", "--network", NETWORK, "-p", published, fixtures.TINY, "true")
    try:
        seen = bench.time("network", commands, {"*": 45, "docker": 12}, warmup=2)
    finally:
        for engine in engines(bench):
            engine("network", "rm", NETWORK, check=False)
    return [Result.faster("`run --rm` on a user-defined network with a published port", seen, "dhow", "docker", 12)]


def tcp(bench):
    for engine in engines(bench):
        bench.have_tiny(engine)

    def send(host, port, pid=None):
        command = ["iperf3", "-c", host, "-p", port, "-t", SECONDS, "-J"]
        report = json.loads(output(*(within(pid, *command) if pid else command)))
        return report["end"]["sum_received"]["bits_per_second"] / 8

    with World(bench, fixtures.TINY, "sleep", "600") as world:
        servers = []
        try:
            for engine in engines(bench):
                command = within(world.pid(engine, "one"), "iperf3", "-s", "-p", "5201")
                servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            time.sleep(1)
            between = turns(bench, "tcp", lambda e: send(world.address(e, "one"), "5201", world.pid(e, "two")))
            published = turns(bench, "tcp-published", lambda e: send("127.0.0.1", PORTS[e.name]))
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    return [
        Result.throughput("TCP from container to container", between, "dhow", "docker", 1),
        Result.throughput("TCP from the host to a container by a published port", published, "dhow", "docker", 1),
    ]


def http(bench):
    archive = bench.work / "hello.tar"
    # The embedded image is an image from its first run on.
    bench.dhow("run", "--rm", "hello")
    bench.dhow("save", "-o", str(archive), "hello")
    bench.docker("load", "-i", str(archive))
    for engine in engines(bench):
        bench.have_tiny(engine)

    def load(engine):
        url = f"http://127.0.0.1:{PORTS[engine.name]}/healthz"
        said = output("wrk", "-t", "1", "-c", "16", "-d", SECONDS, "-H", "Connection: close", url)
        return float(re.search(r"Requests/sec:\s+([\d.]+)", said).group(1))

    with World(bench, "hello", "--http", "8080", inside=8080):
        time.sleep(1)
        seen = turns(bench, "http", load)
    return [Result.often("requests to a small HTTP server by a published port, from the host", seen, "dhow", "docker", 1)]


def volume(bench):
    """The host's own filesystem is the store's: the volume `local` is a directory of it."""
    bench.have_tiny(bench.dhow)
    program = bench.work / "sync"
    source = Path(__file__).with_name("sync.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    bench.dhow("volume", "create", "local")
    bench.dhow("volume", "create", "-d", "disk", "-o", "size=256m", "disk")

    def write(where):
        if where == "host":
            said = output(program, bench.work / "block", "64", WRITE_SECONDS)
        else:
            mounts = ["-v", f"{where}:/data", "-v", f"{program}:/sync:ro"]
            said = bench.dhow("run", "--rm", *mounts, fixtures.TINY, "/sync", "/data/block", "64", str(WRITE_SECONDS))
        return float(said.split()[0])

    seen = {}
    try:
        order = ["host", "local", "disk"]
        for _ in range(WRITE_TURNS):
            for where in order:
                machine.settle()
                seen.setdefault(where, []).append(write(where))
            order.reverse()
    finally:
        bench.dhow("volume", "rm", "local", "disk", check=False)
        (bench.work / "block").unlink(missing_ok=True)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    shares = {kind: statistics.median(map(operator.truediv, seen[kind], seen["host"])) for kind in ("local", "disk")}
    bench.raw["volume"] = {"values": seen, "medians": medians, "shares": shares}
    what = "4 KiB random writes with fsync from a container, volume"
    return [
        Result.often(f"{what} `{kind}`", medians, kind, "host", target, shares[kind])
        for kind, target in (("local", 0.95), ("disk", 0.6))
    ]


ALL = {"network": network, "tcp": tcp, "http": http, "volume": volume}
