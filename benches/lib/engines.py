"""Dhow, Docker and Podman behind one face, each with a store of its own below the work directory."""

import os
import subprocess
import time
from pathlib import Path

import machine

# Both ask for higher limits than a machine may be able to give.
LIMITS = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]


class Engine:
    """A command line that speaks Docker's language."""

    name = "engine"
    run_options: list = []
    pull_options: list = []

    def __init__(self, command):
        self.command = [str(part) for part in command]

    def argv(self, verb, *rest):
        options = {"run": self.run_options, "pull": self.pull_options}.get(verb, [])
        return [*self.command, verb, *options, *rest]

    def __call__(self, verb, *rest, check=True):
        done = subprocess.run(self.argv(verb, *rest), capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name} {verb} {' '.join(rest)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def forget(self, image):
        """The command that makes the next pull start from nothing."""
        return [*self.command, "rmi", "-f", image]

    def version(self):
        return machine.version(*self.command, "--version")

    def processes(self):
        """Processes that it keeps for its containers; the containers themselves are not its."""
        return []

    def stop(self):
        pass


def environments():
    """The id, program and command line of every process."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                program = os.stat(directory / "exe")
                line = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            yield int(directory.name), program, line


class Dhow(Engine):
    name = "dhow"

    def __init__(self, program, work):
        super().__init__([program])
        self.program = program
        self.store = work / "dhow"
        os.environ["DHOW_ROOT"] = str(self.store)
        os.environ["DHOW_RUN"] = str(machine.run_directory(work) / "dhow")

    def forget(self, image):
        # An empty store, not only one without the image.
        return [*self.command, "system", "reset", "--force"]

    def processes(self):
        own = os.stat(self.program)
        return [pid for pid, program, _ in environments() if (program.st_dev, program.st_ino) == (own.st_dev, own.st_ino)]

    def stop(self):
        self("system", "reset", "--force", check=False)


class Docker(Engine):
    name = "docker"

    def __init__(self, work):
        self.run = machine.run_directory(work) / "docker"
        self.run.mkdir()
        socket = f"unix://{self.run}/sock"
        # The client of the daemon's own package: another first in PATH may be of another version.
        super().__init__(["/usr/bin/docker", "--host", socket])
        self.log = open(work / "dockerd.log", "wb")
        command = ["dockerd", "--host", socket, "--data-root", work / "docker", "--exec-root", self.run / "exec"]
        command += ["--pidfile", self.run / "pid"]
        self.daemon = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while subprocess.run([*self.command, "version"], capture_output=True, check=False).returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd does not start: see {self.log.name}")
            time.sleep(0.2)

    def processes(self):
        # dockerd, its containerd and every shim carry the exec root in their command lines.
        return [pid for pid, _, line in environments() if line[0].endswith(("dockerd", "containerd", "-v2")) and any(str(self.run) in word for word in line)]

    def stop(self):
        self.daemon.terminate()
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()


class Podman(Engine):
    name = "podman"
    run_options = LIMITS
    pull_options = ["--tls-verify=false"]

    def __init__(self, work):
        run = machine.run_directory(work) / "podman"
        super().__init__(["podman", "--root", work / "podman", "--runroot", run, "--runtime", "runc", "--cgroup-manager", "cgroupfs"])

    def processes(self):
        return [pid for pid, _, line in environments() if line[0].endswith("conmon")]

    def stop(self):
        self("rm", "-fa", check=False)


def start(work, program, podman):
    everyone = [Dhow(program, work), Docker(work)]
    if podman:
        everyone.append(Podman(work))
    return everyone
