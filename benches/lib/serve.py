"""The rows of the Docker Engine API: the same client, the same requests, our server and dockerd's in one run.

Requests go over connections that are kept, by Python's http.client on a Unix socket; the `docker` command is that of the machine.
"""

import http.client
import json
import socket
import statistics
import subprocess
import threading
import time

import fixtures
import machine
from report import Result

ROUNDS = 3
CLIENTS = 16
LISTED = 500
FOLLOWERS = 100


class Connection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path):
        super().__init__("docker", timeout=120)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None, expect=(200, 201, 204, 304)):
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, "/v1.41" + path, json.dumps(body) if body is not None else None, headers)
        answer = self.getresponse()
        data = answer.read()
        if answer.status not in expect:
            raise RuntimeError(f"{method} {path}: {answer.status}: {data.decode(errors='replace')}")
        return json.loads(data) if data and answer.headers.get_content_type() == "application/json" else None


class Served:
    """Our server beside dockerd's: sockets by engine."""

    def __init__(self, bench):
        self.bench = bench
        run = machine.run_directory(bench.work)
        self.sockets = {"dhow": run / "dhow-api.sock", "docker": run / "docker" / "sock"}

    def __enter__(self):
        for engine in (self.bench.dhow, self.bench.docker):
            self.bench.have_tiny(engine)
        self.server = subprocess.Popen([str(self.bench.dhow.program), "serve", "--socket", str(self.sockets["dhow"])], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self.sockets["dhow"].exists():
            if time.monotonic() > deadline:
                raise RuntimeError("dhow serve does not listen")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.terminate()
        self.server.wait(30)

    def resident(self):
        with open(f"/proc/{self.server.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


def config(command):
    return {"Image": fixtures.TINY, "Cmd": command, "HostConfig": {"NetworkMode": "none"}}


def cycle(connection):
    """One container's whole life, as a CI runner has it."""
    made = connection.ask("POST", "/containers/create", config(["true"]))["Id"]
    connection.ask("POST", f"/containers/{made}/start")
    connection.ask("POST", f"/containers/{made}/wait")
    connection.ask("DELETE", f"/containers/{made}")


def lives(path, clients, each):
    """Lives a second, of so many clients at once."""

    def client():
        connection = Connection(path)
        for _ in range(each):
            cycle(connection)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * each / (time.monotonic() - begin)


def api_run(bench):
    with Served(bench) as served:
        commands = {name: ["docker", "-H", f"unix://{path}", "run", "--rm", "--network", "none", fixtures.TINY, "true"] for name, path in served.sockets.items()}
        seen = bench.time("api-run", commands, {"*": 30, "docker": 12})
    return [Result.faster("`docker run --rm IMAGE true` against each server", seen, "dhow", "docker", 3)]


def api_lives(bench):
    results = []
    with Served(bench) as served:
        for clients, counts in ((1, {"dhow": 60, "docker": 12}), (CLIENTS, {"dhow": 12, "docker": 3})):
            rates = {name: [] for name in served.sockets}
            for _ in range(ROUNDS):
                machine.settle()
                for name, path in served.sockets.items():
                    rates[name].append(lives(path, clients, counts[name]))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            bench.raw[f"api-lives-{clients}"] = {"rates": rates, "medians": medians}
            what = "one client" if clients == 1 else f"{clients} clients at once"
            results.append(Result.often(f"create, start, wait, remove over a kept connection, {what}", medians, "dhow", "docker", 5))
    return results


def api_list(bench):
    with Served(bench) as served:
        seen = {}
        for name, path in served.sockets.items():
            connection = Connection(path)
            made = [connection.ask("POST", "/containers/create", config(["true"]))["Id"] for _ in range(LISTED)]
            times = []
            for _ in range(20):
                begin = time.monotonic()
                found = connection.ask("GET", "/containers/json?all=1")
                times.append(time.monotonic() - begin)
                assert len(found) == LISTED, len(found)
            seen[name] = statistics.median(times)
            for container in made:
                connection.ask("DELETE", f"/containers/{container}")
        bench.raw["api-list"] = seen
    return [Result.faster(f"list of {LISTED} containers", seen, "dhow", "docker", 5)]


def api_memory(bench):
    with Served(bench) as served:
        connection = Connection(served.sockets["dhow"])
        made = connection.ask("POST", "/containers/create", config(["sleep", "600"]))["Id"]
        connection.ask("POST", f"/containers/{made}/start")
        connection.ask("GET", "/containers/json")
        time.sleep(8)
        idle = served.resident()
        followers = []
        for _ in range(FOLLOWERS):
            follower = Connection(served.sockets["dhow"])
            follower.request("GET", f"/v1.41/containers/{made}/logs?follow=1&stdout=1")
            follower.getresponse()
            followers.append(follower)
        time.sleep(2)
        followed = served.resident()
        for follower in followers:
            follower.close()
        connection.ask("DELETE", f"/containers/{made}?force=1")
        bench.raw["api-memory"] = {"idle": idle, "followed": followed}
    return [
        Result.size("resident memory of `dhow serve`, idle", {"dhow": idle}, "dhow", 15e6),
        Result.size(f"the same with {FOLLOWERS} followers of a log", {"dhow": followed}, "dhow", 40e6),
    ]


ALL = {"api-run": api_run, "api-lives": api_lives, "api-list": api_list, "api-memory": api_memory}
