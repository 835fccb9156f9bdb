"""The rows: what is timed, how often, and what it is compared with."""

import json
import statistics
import subprocess
import time
from pathlib import Path

import fixtures
import machine
from report import Result

# Every round times each command in turn, so that a machine that slows down slows all of them.
ROUNDS = 3
CONTAINERS = 100
BATCH = 8


class Bench:
    """What the rows share."""

    def __init__(self, work, output, everyone, registry):
        self.work, self.output, self.registry = work, output, registry
        self.everyone = everyone
        self.dhow, self.docker = everyone[0], everyone[1]
        self.raw = {}
        self.bundle = fixtures.bundle(work)

    def have_tiny(self, engine):
        engine("pull", fixtures.TINY)

    def time(self, row, commands, runs, warmup=2, output="null", prepare=None):
        """Median seconds by name. `commands` maps a name to an argument list."""
        times = {name: [] for name in commands}
        for turn in range(ROUNDS):
            machine.settle()
            for name, argv in commands.items():
                count = max(1, -(-runs.get(name, runs["*"]) // ROUNDS))
                result = self.work / "hyperfine.json"
                call = ["hyperfine", "--style=none", "--shell=none", f"--output={output}", f"--runs={max(count, 2)}"]
                call += [f"--warmup={warmup if turn == 0 else min(warmup, 1)}", f"--export-json={result}"]
                if prepare and prepare.get(name):
                    call.append(f"--prepare={quote(prepare[name])}")
                done = subprocess.run([*call, quote(argv)], capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise RuntimeError(f"{row}: {name} failed: {done.stderr.strip()}")
                times[name] += json.loads(result.read_text())["results"][0]["times"]
        medians = {name: statistics.median(values) for name, values in times.items()}
        self.raw[row] = {"times": times, "medians": medians}
        print(f"{row}: " + ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in medians.items()), flush=True)
        return medians


def quote(argv):
    """hyperfine splits its command as a shell would."""
    import shlex

    return shlex.join(str(part) for part in argv)


def run(bench):
    for engine in bench.everyone:
        bench.have_tiny(engine)
    root = bench.bundle / "rootfs"
    bare = ["unshare", "--net", "chroot", root, "/bin/true"]
    all_namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--ipc", "--uts", "chroot", root, "/bin/true"]
    runs = {"*": 60, "docker": 15, "podman": 12}
    results = []
    for network in ("bridge", "none"):
        commands = {"unshare": bare, "unshare (all namespaces)": all_namespaces}
        commands["runc"] = ["runc", "run", "--bundle", bench.bundle, "dhow-bench"]
        for engine in bench.everyone:
            commands[engine.name] = engine.argv("run", "--rm", "--network", network, fixtures.TINY, "true")
        seen = bench.time(f"run-{network}", commands, runs, warmup=3)
        share = 12 if network == "bridge" else 20
        results.append(Result.faster(f"`run --rm`, network {network}", seen, "dhow", "docker", share))
        if network == "bridge":
            results.append(Result.at_most("the same, against a bare `unshare`", seen, "dhow", "unshare", 6))
    return results


def exec_(bench):
    commands = {}
    for engine in bench.everyone:
        bench.have_tiny(engine)
        engine("run", "-d", "--name", "exec", fixtures.TINY, "sleep", "600")
        commands[engine.name] = engine.argv("exec", "exec", "true")
    try:
        seen = bench.time("exec", commands, {"*": 60, "podman": 20}, warmup=3)
    finally:
        for engine in bench.everyone:
            engine("rm", "-f", "exec", check=False)
    return [Result.faster("`exec` of `true`", seen, "dhow", "docker", 10)]


def pull(bench):
    packed = bench.output / "layer.tar.gz"
    commands = {"gzip -dc": ["gzip", "-dc", packed]}
    prepare = {}
    for engine in bench.everyone:
        commands[engine.name] = engine.argv("pull", "-q", fixtures.LARGE)
        prepare[engine.name] = engine.forget(fixtures.LARGE)
        engine("pull", "-q", fixtures.LARGE)
    seen = bench.time("pull", commands, {"*": 6, "dhow": 9}, warmup=0, prepare=prepare)
    return [
        Result.at_most("`pull` of an 86 MB gzip layer until it can run, against `gzip -dc` of it", seen, "dhow", "gzip -dc", 1.1),
        Result.faster("the same, against Docker", seen, "dhow", "docker", 5),
    ]


def proportional(pids):
    """The proportional set size of processes, in bytes."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            pass
    return total


def hundred(bench):
    total, starting, kept, processes = {}, {}, {}, {}
    names = [f"b{number}" for number in range(CONTAINERS)]
    for engine in bench.everyone:
        bench.have_tiny(engine)
        machine.settle()
        command = engine.argv("run", "-d", "--name", "{}", fixtures.TINY, "sleep", "600")
        start = time.monotonic()
        subprocess.run(["xargs", "-P", str(BATCH), "-I{}", *command], input="\n".join(names), text=True, check=True, stdout=subprocess.DEVNULL)
        starting[engine.name] = time.monotonic() - start
        running = len(engine("ps", "-q").split())
        if running != CONTAINERS:
            raise RuntimeError(f"{engine.name} runs {running} containers instead of {CONTAINERS}")
        time.sleep(2)
        pids = engine.processes()
        processes[engine.name] = len(pids)
        kept[engine.name] = proportional(pids) / CONTAINERS
        start = time.monotonic()
        engine("rm", "-f", *names)
        removing = time.monotonic() - start
        total[engine.name] = starting[engine.name] + removing
        print(
            f"hundred: {engine.name} started in {starting[engine.name]:.2f} s, removed in {removing:.2f} s, "
            f"keeps {kept[engine.name] / 1e6:.2f} MB per container in {len(pids)} processes",
            flush=True,
        )
    bench.raw["hundred"] = {"starting": starting, "total": total, "memory": kept, "processes": processes}
    return [
        Result.faster(f"{CONTAINERS} containers started {BATCH} at a time, then all removed", total, "dhow", "docker", 5),
        Result.size("memory kept per idle container (PSS)", kept, "dhow", 1.5e6),
    ]


def stdout(bench):
    files = {"binary": bench.output / "layer.tar", "text": fixtures.text(bench.work)}
    results = []
    for kind, file in files.items():
        commands = {}
        for engine in bench.everyone:
            bench.have_tiny(engine)
            commands[engine.name] = engine.argv("run", "--rm", "--network", "none", "-v", f"{file}:/file:ro", fixtures.TINY, "cat", "/file")
        row = "stdout" if kind == "binary" else f"stdout-{kind}"
        seen = bench.time(row, commands, {"*": 6, "docker": 3}, warmup=0, output="pipe")
        size = file.stat().st_size
        rates = {name: size / seconds for name, seconds in seen.items()}
        bench.raw[row]["rates"] = rates
        what = f"stdout of a container, a {size / 1e6:.0f} MB {kind} file, to a pipe and into the log"
        results.append(Result.throughput(what, rates, "dhow", "docker", 10))
    return results


def dns(bench):
    """Answers for the name of another container on a user-defined network."""
    client = bench.output / "names"
    source = Path(__file__).resolve().parent / "names.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", client, source], check=True)
    # Podman's names are a daemon of another package's.
    engines = [bench.dhow, bench.docker]
    try:
        for engine in engines:
            bench.have_tiny(engine)
            engine("network", "create", "bench-names")
            engine("run", "-d", "--name", "asked", "--network", "bench-names", fixtures.TINY, "sleep", "600")
            engine("run", "-d", "--name", "asks", "--network", "bench-names", "-v", f"{client}:/names:ro", fixtures.TINY, "sleep", "600")
        results = []
        for outstanding, what in ((1, "one question at a time"), (32, "32 questions at a time")):
            rates = {engine.name: [] for engine in engines}
            for _ in range(ROUNDS):
                machine.settle()
                for engine in engines:
                    said = engine("exec", "asks", "/names", "127.0.0.11", "asked", "3", str(outstanding))
                    rates[engine.name].append(float(said.split()[0]))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            bench.raw[f"dns-{outstanding}"] = {"rates": rates, "medians": medians}
            results.append(Result.often(f"answers for a container's name, {what}", medians, "dhow", "docker", 3))
        return results
    finally:
        for engine in engines:
            engine("rm", "-f", "asked", "asks", check=False)
            engine("network", "rm", "bench-names", check=False)


ALL = {"run": run, "exec": exec_, "pull": pull, "hundred": hundred, "stdout": stdout, "dns": dns}
