"""The rows of microVMs, seen from outside: which kernel, which host, what became of the targets.

A host that has KVM measures itself; then, and elsewhere alone, the emulated one does (contrib/kvm-host).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import machines
from report import Result

ALL = tuple(machines.ROWS)
PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "cpio": "cpio", "gcc": "gcc", "busybox": "busybox-static", "ip": "iproute2"}
EMULATED = "emulated KVM host"


def cache(repository):
    return Path(os.environ.get("DHOW_CACHE", repository / "target" / ".cache"))


# QEMU's guests have no modules.
LEAN_ONLY = {"vm-disk", "vm-net", "vm-pair", "vm-files", "vm-sync"}
LEAN = "lean kernel"


def kernel(repository):
    """The lean kernel if `make kernel` has built it, else Debian's; what it is called, and its arguments."""
    for lean in (cache(repository) / "kernel").glob("*/vmlinux"):
        if not lean.parent.name.startswith("work."):
            return LEAN, ["--kernel", lean]
    tree = cache(repository) / "cloud-kernel"
    if not (tree / "boot").exists():
        script = (
            "image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)\n"
            'apt-get -q download "$image" && dpkg-deb -x ./*.deb tree'
        )
        work = cache(repository) / f"cloud-kernel.{os.getpid()}"
        work.mkdir(parents=True)
        subprocess.run(["sh", "-euc", script], cwd=work, check=True, stdout=subprocess.DEVNULL)
        (work / "tree").rename(tree)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    return "Debian's cloud kernel", ["--kernel", image, "--modules", tree / "lib" / "modules" / image.name.removeprefix("vmlinuz-")]


def has_kvm():
    flags = next((line.split() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), [])
    return bool({"vmx", "svm"} & set(flags)) and Path("/dev/kvm").exists()


def measure(repository, output, dhow, rows):
    """Results of these rows, and what to say of the machine."""
    for tool in ("send", "files", "sync"):
        subprocess.run(["gcc", "-O2", "-static", "-o", output / tool, repository / "benches/lib" / f"{tool}.c"], check=True)
    name, arguments = kernel(repository)
    if name != LEAN and LEAN_ONLY & set(rows):
        print("SKIPPED, as they need the lean kernel (make kernel):", *sorted(LEAN_ONLY & set(rows)), flush=True)
        rows = [row for row in rows if row not in LEAN_ONLY]
    command = [sys.executable, repository / "benches/lib/machines.py", *arguments, "--tools", output, *rows]
    environment = dict(os.environ, DHOW_BIN=str(dhow))
    hosts = {EMULATED: [repository / "contrib/kvm-host", "-m", "4096", "-t", "3000", "--", *command]}
    if has_kvm():
        hosts = {"KVM": command, **hosts}
    results, raw = [], {"machines-raw": {}}
    for host, argv in hosts.items():
        seen = figures(argv, environment)
        raw["machines-raw"][host] = seen
        results += [result for row, values in seen.items() for result in RESULTS[row](f"{name}, {host}", values)]
    return results, raw


def figures(argv, environment):
    done = subprocess.run([str(arg) for arg in argv], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(machines.MARK)]
    for line in done.stdout.splitlines():
        print(line, flush=True)
    if not found:
        raise RuntimeError(f"microVMs could not be measured: exit code {done.returncode}")
    return json.loads(found[0].removeprefix(machines.MARK))


def run(where, seen):
    return [Result.at_most(f"`run --vm --rm IMAGE true`, start to exit ({where})", seen, "dhow", "qemu", 0.7)]


def memory(where, seen):
    return [
        Result.size(f"memory of the VMM beside its guest's ({where})", seen["vmm"], "dhow", 4e6),
        Result.size(f"memory that an idle microVM with the embedded image costs, 128 MB given ({where})", seen["idle"], "dhow", 40e6),
    ]


def disk(where, seen):
    return [Result.throughput(f"sequential read of a layer's file, cold ({where})", seen, "dhow", "qemu", 1)]


def net(where, seen):
    return [Result.throughput(f"TCP from guest to host ({where})", seen, "dhow", "qemu", 1)]


def pair(where, seen):
    return [
        Result.throughput(f"TCP from guest to guest ({where})", seen["between"], "dhow", "qemu", 1),
        Result.throughput(f"TCP from host to guest ({where})", seen["inward"], "dhow", "qemu", 1),
    ]


def files(where, seen):
    whats = {"untar": "untar of 13,000 small files (emulated: 1,000) in a directory of the host", "look": "looking at them all, as `git status` does"}
    return [Result.at_most(f"{what} ({where})", seen[name], "dhow", "virtiofsd", 1) for name, what in whats.items()]


def sync(where, seen):
    return [Result.often(f"4 KiB random writes with fsync in a directory of the host ({where})", seen, "dhow", "virtiofsd", 1)]


RESULTS = {"vm-run": run, "vm-memory": memory, "vm-disk": disk, "vm-net": net, "vm-files": files, "vm-sync": sync, "vm-pair": pair}
