"""The rows of the host's directories in microVMs: virtio-fs beside Debian's virtiofsd with QEMU, the same kernel in both."""

import io
import os
import re
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
# Each takes a twentieth of a second on the emulated host.
EMULATED = "DHOW_KVM_HOST" in os.environ
FILES = 1_000 if EMULATED else 13_000
IN_EACH_DIRECTORY = 10
# Each takes minutes on the emulated host.
TURNS = min(3, int(os.environ.get("DHOW_BENCH_ROUNDS", "3")))
PATIENCE = 1200
MIB = 1 << 20
MEMORY = 512
SYNC_MIB, SYNC_SECONDS = 4, 5
TREE = "tree.tar"
# What a guest carries out where it has the directory.
SMALL_FILES = f"/bin/files run /bin/busybox tar -xf /{TREE} -C /mnt && /bin/files look /mnt"
SYNCED = f"/bin/sync-writes /mnt/file {SYNC_MIB} {SYNC_SECONDS}"


def tree():
    """A tar of many small files in some directories."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(FILES):
            directory = f"d{number // IN_EACH_DIRECTORY:04}"
            if number % IN_EACH_DIRECTORY == 0:
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            content = f"{number}\n".encode() * 200
            entry = tarfile.TarInfo(f"{directory}/f{number:05}")
            entry.mode, entry.size = 0o644, len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def ours(host, directory, script):
    return host.run([host.program, "run", "--vm", "--rm", "-m", f"{MEMORY}m", "-v", f"{directory}:/mnt", "bench", "sh", "-c", script], PATIENCE)


def theirs(host, directory, script):
    """QEMU and the daemon that Debian has for it, which ends with its only client."""
    socket = Path(tempfile.mkdtemp(dir=host.work)) / "socket"
    daemon = subprocess.Popen([VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={directory}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not socket.exists():
            if daemon.poll() is not None:
                raise RuntimeError(f"virtiofsd ended with {daemon.returncode}")
            time.sleep(0.01)
        mount = "/bin/busybox mount -t virtiofs shared /mnt"
        shared = ["-object", f"memory-backend-memfd,id=mem,size={MEMORY}M,share=on", "-machine", "memory-backend=mem"]
        device = ["-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-device,chardev=fs,tag=shared"]
        return host.run(host.qemu(f"{mount} && {script}", *shared, *device, memory=MEMORY), PATIENCE)
    finally:
        daemon.kill()
        daemon.wait()


def turns(host, script, pattern):
    """All numbers that the pattern finds in what each says, each in turn, in a new directory each time."""
    seen = {"dhow": [], "virtiofsd": []}
    for _ in range(TURNS):
        for name, way in (("dhow", ours), ("virtiofsd", theirs)):
            directory = tempfile.mkdtemp(dir=host.work)
            said = way(host, directory, script)
            found = [float(number) for number in re.findall(pattern, said)]
            if not found:
                raise RuntimeError(f"{name} said nothing of its time: {said}")
            seen[name].append(found)
            host.say(f"{name}: {found}")
            shutil.rmtree(directory)
    return {name: [statistics.median(column) for column in zip(*values)] for name, values in seen.items()}


def small_files(host):
    seen = turns(host, SMALL_FILES, r"took (\d+) us")
    return {what: {name: values[column] / 1e6 for name, values in seen.items()} for column, what in enumerate(("untar", "look"))}


def synced(host):
    return {name: values[0] for name, values in turns(host, SYNCED, r"([0-9.]+) writes/s").items()}


ROWS = {"vm-files": small_files, "vm-sync": synced}
