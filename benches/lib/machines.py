#!/usr/bin/env python3
"""The rows of microVMs, on a host that has KVM: beside QEMU's microvm machine with KVM and the same kernel.

    machines.py --kernel FILE [--modules DIR] --tools DIR ROW ...

Runs on the emulated host too, from which nothing but its output comes back: prints the figures as one line of JSON.
"""

import argparse
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import shares

MARK = "figures: "
ROUNDS = int(os.environ.get("DHOW_BENCH_ROUNDS", "5"))
MIB = 1 << 20
FILE_MIB = 64
SEND_MIB = 64
GIVEN_MIB = 128
PATIENCE = 240
QEMU = ["qemu-system-x86_64", "-M", "microvm", "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config"]
QEMU += ["-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false"]
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
%s
/bin/busybox poweroff -f
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Host:
    """A store with one image and one kernel, and an initramfs for QEMU's guests."""

    def __init__(self, options, work):
        self.options, self.work = options, work
        self.program = os.environ["DHOW_BIN"]
        os.environ.update(DHOW_ROOT=str(work / "root"), DHOW_RUN=str(work / "run"))
        modules = ["--modules", options.modules] if options.modules else []
        self.dhow("kernel", "import", "--name", "bench", *modules, options.kernel)
        image = work / "image.tar"
        image.write_bytes(self.image())
        self.dhow("import", image, "bench")

    def dhow(self, *args):
        return self.run([self.program, *args])

    say = staticmethod(say)

    @staticmethod
    def run(argv, patience=PATIENCE):
        argv = [str(arg) for arg in argv]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=patience, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def image(self):
        """busybox, the tools, and what they work on."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in self.programs().items():
                self.add(tar, name, content)
            for name in ("sh", "true", "sleep", "dd"):
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
            if "vm-disk" in self.options.rows:
                self.add(tar, "file", os.urandom(FILE_MIB * MIB))
        return packed.getvalue()

    def programs(self):
        """What every guest has, by its path."""
        tools = {"bin/send": "send", "bin/files": "files", "bin/sync-writes": "sync"}
        found = {path: (Path(self.options.tools) / name).read_bytes() for path, name in tools.items()}
        found["bin/busybox"] = Path("/bin/busybox").read_bytes()
        if "vm-files" in self.options.rows:
            found[shares.TREE] = shares.tree()
        return found

    @staticmethod
    def add(tar, name, content):
        entry = tarfile.TarInfo(name)
        entry.mode, entry.size = 0o755, len(content)
        tar.addfile(entry, io.BytesIO(content))

    def initramfs(self, script):
        """The same in a root of memory, with an init that carries out the script and powers off."""
        tree = Path(tempfile.mkdtemp(dir=self.work))
        (tree / "bin").mkdir()
        for name, content in self.programs().items():
            (tree / name).write_bytes(content)
            (tree / name).chmod(0o755)
        (tree / "init").write_text(INIT % script)
        (tree / "init").chmod(0o755)
        names = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
        packed = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=names, capture_output=True, check=True)
        path = tree / "initramfs"
        path.write_bytes(packed.stdout)
        return path

    def qemu(self, script, *more, memory=512):
        """The command line of a guest that carries out the script."""
        command = [*QEMU, "-m", str(memory), "-kernel", self.options.kernel, "-initrd", str(self.initramfs(script))]
        return [*command, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init", "-serial", "stdio", *more]


def median_of_turns(commands):
    """Median seconds by name, each command in turn, so that a host that slows down slows all of them."""
    times = {name: [] for name in commands}
    for turn in range(ROUNDS + 1):
        for name, argv in commands.items():
            start = time.monotonic()
            Host.run(argv)
            # The first turn warms the page cache.
            if turn:
                times[name].append(time.monotonic() - start)
                say(f"{name}: {times[name][-1]:.3f} s")
    return {name: statistics.median(values) for name, values in times.items()}


def vm_run(host):
    ours = [host.program, "run", "--vm", "--rm", "bench", "true"]
    return median_of_turns({"dhow": ours, "qemu": host.qemu("")})


def mappings(pid):
    """Size and proportional set size of each mapping, in bytes; anonymous neighbours are one."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    head = r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+).*?^Pss: +(\d+) kB"
    found = []
    for start, end, inode, pss in re.findall(head, text, re.MULTILINE | re.DOTALL):
        start, end, pss, anonymous = int(start, 16), int(end, 16), int(pss) * 1024, inode == "0"
        if anonymous and found and found[-1][3] and found[-1][1] == start:
            start, _, before, _ = found.pop()
            pss += before
        found.append((start, end, pss, anonymous))
    return [(end - start, pss) for start, end, pss, _ in found]


def split(pid):
    """What a machine's process takes: of its guest's memory, and beside it."""
    guest = [pss for size, pss in mappings(pid) if size >= GIVEN_MIB * MIB]
    return sum(guest), sum(pss for _, pss in mappings(pid)) - sum(guest)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def vm_memory(host):
    host.dhow("run", "--vm", "-d", "--name", "idle", "-m", f"{GIVEN_MIB}m", "hello", "--http", "8080")
    sleeper = subprocess.Popen(host.qemu("/bin/busybox sleep 1000", memory=GIVEN_MIB), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # A guest gives back what it does not need, within seconds.
        time.sleep(20)
        monitor = int(host.dhow("inspect", "-f", "{{.State.Pid}}", "idle"))
        (machine,) = children(monitor)
        guest, beside = split(machine)
        theirs = split(sleeper.pid)
        supervisor = int(re.search(r"^PPid:\t(\d+)", Path(f"/proc/{monitor}/status").read_text(), re.MULTILINE)[1])
        rest = sum(pss for pid in (monitor, supervisor) for _, pss in mappings(pid))
        return {
            "vmm": {"dhow": beside, "qemu": theirs[1]},
            "idle": {"dhow": guest + beside + rest, "dhow's guest": guest, "qemu": sum(theirs)},
        }
    finally:
        sleeper.kill()
        sleeper.wait()
        host.dhow("rm", "-f", "idle")


def rate(text, mib):
    """Bytes a second, from what the guest's program says of its time."""
    spoken = re.search(r"took (\d+) us", text)
    if not spoken:
        raise RuntimeError(f"the guest said nothing of its time: {text}")
    return mib * MIB * 1e6 / max(int(spoken[1]), 1)


def rates(commands, mib, before=lambda: None):
    seen = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, argv in commands.items():
            before()
            seen[name].append(rate(Host.run(argv), mib))
            say(f"{name}: {seen[name][-1] / 1e6:.0f} MB/s")
    return {name: statistics.median(values) for name, values in seen.items()}


def vm_disk(host):
    (layer,) = (host.work / "root" / "layers").glob("*.erofs")
    read = "/bin/busybox mount -t erofs -o ro /dev/vda /mnt && /bin/files run /bin/busybox dd if=/mnt/file of=/dev/null bs=1M"
    disk = ["-drive", f"id=d,if=none,format=raw,readonly=on,file={layer}", "-device", "virtio-blk-device,drive=d"]
    commands = {
        "host": [Path(host.options.tools) / "files", "run", "busybox", "dd", f"if={layer}", "of=/dev/null", "bs=1M", f"count={FILE_MIB}"],
        "dhow": [host.program, "run", "--vm", "--rm", "bench", "files", "run", "dd", "if=/file", "of=/dev/null", "bs=1M"],
        "qemu": host.qemu(read, *disk),
    }
    return rates(commands, FILE_MIB, lambda: Path("/proc/sys/vm/drop_caches").write_text("3"))


class Sink(threading.Thread):
    """Takes all bytes of each connection, then closes it."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.socket = socket.create_server((address, 0))
        self.port = self.socket.getsockname()[1]

    def run(self):
        buffer = bytearray(1 << 18)
        while True:
            connection, _ = self.socket.accept()
            with connection:
                while connection.recv_into(buffer):
                    pass


class Open:
    """A network whose machines may reach the host, QEMU's too; a container keeps its bridge there."""

    NETWORK = "open"

    def __init__(self, host):
        self.host, self.taps = host, []

    def __enter__(self):
        host = self.host
        host.dhow("network", "create", "-o", "host-access=true", self.NETWORK)
        host.dhow("run", "-d", "--name", "keeper", "--network", self.NETWORK, "bench", "sleep", "10000")
        inspect = "{{.NetworkSettings.Networks.open.Gateway}} {{.NetworkSettings.Networks.open.IPPrefixLen}}"
        self.gateway, self.prefix = host.dhow("inspect", "-f", inspect, "keeper").split()
        links = json.loads(host.run(["ip", "-json", "addr"]))
        (self.bridge,) = [link["ifname"] for link in links if any(a.get("local") == self.gateway for a in link["addr_info"])]
        return self

    def __exit__(self, *_):
        self.host.dhow("rm", "-f", "keeper")
        for tap in self.taps:
            self.host.run(["ip", "link", "del", tap])
        self.host.dhow("network", "rm", self.NETWORK)

    def address(self, last):
        return ".".join([*self.gateway.split(".")[:3], str(last)])

    def qemu(self, last, command):
        """A guest of QEMU with that address: virtio-net, a tap on the network's bridge, without vhost."""
        tap = f"benchtap{last}"
        self.host.run(["ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"])
        self.host.run(["ip", "link", "set", tap, "master", self.bridge, "up"])
        self.taps.append(tap)
        own = f"/bin/busybox ip addr add {self.address(last)}/{self.prefix} dev eth0; /bin/busybox ip link set eth0 up"
        nic = ["-netdev", f"tap,id=n,ifname={tap},script=no,downscript=no,vhost=off"]
        nic += ["-device", f"virtio-net-device,netdev=n,mac=02:00:00:00:00:{last:02x}"]
        return self.host.qemu(f"{own}\n{command}", *nic)

    def dhow(self, *command):
        return [self.host.program, "run", "--vm", "--rm", "--network", self.NETWORK, "bench", *command]


def vm_net(host):
    with Open(host) as network:
        sink = Sink(network.gateway)
        sink.start()
        send = [network.gateway, str(sink.port), str(SEND_MIB)]
        ours, theirs = network.dhow("send", *send), network.qemu(250, f"/bin/send {' '.join(send)}")
        return rates({"dhow": ours, "qemu": theirs}, SEND_MIB)


def vm_pair(host):
    """From one machine to another, and from the host to one; a machine of each kind takes what is sent."""
    port = "5001"
    with Open(host) as network:
        host.dhow("run", "--vm", "-d", "--name", "sink", "--network", network.NETWORK, "bench", "send", "listen", port)
        theirs = subprocess.Popen(network.qemu(251, f"/bin/send listen {port}"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            inspect = "{{.NetworkSettings.Networks.open.IPAddress}}"
            ends = {"dhow": host.dhow("inspect", "-f", inspect, "sink").strip(), "qemu": network.address(251)}
            send = {name: [end, port, str(SEND_MIB)] for name, end in ends.items()}
            between = {"dhow": network.dhow("send", *send["dhow"]), "qemu": network.qemu(250, f"/bin/send {' '.join(send['qemu'])}")}
            inward = {name: [Path(host.options.tools) / "send", *words] for name, words in send.items()}
            return {"between": rates(between, SEND_MIB), "inward": rates(inward, SEND_MIB)}
        finally:
            theirs.kill()
            theirs.wait()
            host.dhow("rm", "-f", "sink")


ROWS = {"vm-run": vm_run, "vm-memory": vm_memory, "vm-disk": vm_disk, "vm-net": vm_net, "vm-pair": vm_pair, **shares.ROWS}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--modules")
    parser.add_argument("--tools", required=True)
    parser.add_argument("rows", nargs="+", choices=list(ROWS))
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="dhow-bench-") as work:
        host = Host(options, Path(work))
        try:
            for row in options.rows:
                say(row)
                try:
                    figures[row] = ROWS[row](host)
                except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                    # What the others found is told all the same.
                    say(f"{row}: {error}")
        finally:
            host.dhow("system", "reset", "--force")
    print(MARK + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
