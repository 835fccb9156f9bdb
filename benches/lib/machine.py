"""The machine that measures: packages, our build, a place to work in, and what to say about it."""

import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PACKAGES = {
    "dockerd": "docker.io",
    "podman": "podman",
    "runc": "runc",
    "hyperfine": "hyperfine",
    "docker-registry": "docker-registry",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "unshare": "util-linux",
    "ip": "iproute2",
}
CGROUPS = Path("/sys/fs/cgroup")


def install_packages(packages):
    missing = sorted({package for program, package in packages.items() if not shutil.which(program)})
    if not missing:
        return
    print("installing", *missing, flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    # A container or CI machine has no init that could start daemons on installation: we start our own.
    subprocess.run(["apt-get", "update", "-q"], env=environment, check=True, stdout=subprocess.DEVNULL)
    command = ["apt-get", "install", "-qy", "--no-install-recommends", *missing]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def build_dhow(repository):
    given = os.environ.get("DHOW_BIN")
    if given:
        return Path(given).resolve(strict=True)
    command = ["cargo", "build", "--profile", "dist", "--locked", "--package", "dhow-dhow"]
    subprocess.run(command, cwd=repository, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", repository / "target"))
    triple = os.environ.get("CARGO_BUILD_TARGET") or f"{platform.machine()}-unknown-linux-gnu"
    return (target / triple / "dist" / "dhow").resolve(strict=True)


def make_work_directory():
    """On a disk that can carry overlayfs, as every engine's default place; short, for socket paths."""
    parent = Path(os.environ.get("DHOW_BENCH_DIR", "/var/lib"))
    return Path(tempfile.mkdtemp(prefix="dhow-bench-", dir=parent))


def remove_work_directory(work):
    subprocess.run(["chattr", "-R", "-i", work], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(Path("/run") / work.name, ignore_errors=True)


def settle_in(work):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (Path("/run") / work.name).mkdir(mode=0o700)


def run_directory(work):
    return Path("/run") / work.name


def cgroups():
    """Every cgroup but those of the machine's own services, two levels deep: what engines make."""
    return {path for pattern in ("*/*", "*/*/*") for path in CGROUPS.glob(pattern) if path.is_dir()}


def remove_cgroups(paths):
    for path in sorted(paths, key=lambda path: -len(path.parts)):
        if not (path / "cgroup.procs").exists():
            continue
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                pass


def settle():
    """Lets what the last command left to the kernel (writeback, namespaces being dismantled) come to rest."""
    os.sync()
    time.sleep(0.5)


def version(*command):
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return "none"
    return answer.strip().splitlines()[0] if answer.strip() else "none"


def describe(everyone):
    processor = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024 // 1024
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} x {processor}",
        "memory": f"{memory + 1} GiB",
        "kernel": platform.release(),
        "cgroups": "v2" if (CGROUPS / "cgroup.controllers").exists() else "v1 (hybrid)",
        "load at the start": f"{os.getloadavg()[2]:.1f}",
    }
    for engine in everyone:
        facts[engine.name] = engine.version()
    if not everyone:
        facts["qemu"] = version("qemu-system-x86_64", "--version")
        return facts
    facts["runc"] = version("runc", "--version").removeprefix("runc version ")
    return facts
