"""The docker command on a terminal of its own, against `dhow serve`, that DOCKER_HOST names."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

DETACH = b"\x10\x11"


class Terminal:
    def __init__(self, *args):
        self.args, self.said = args, b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp("docker", ["docker", *args])

    def type(self, keys):
        os.write(self.fd, keys)

    def until(self, want, seconds=90):
        end = time.time() + seconds
        while want not in self.said:
            assert time.time() < end, (self.args, want, self.said)
            if not select.select([self.fd], [], [], 0.2)[0]:
                continue
            try:
                piece = os.read(self.fd, 65536)
            except OSError:
                piece = b""
            assert piece, (self.args, want, self.said)
            self.said += piece
        self.said = self.said.partition(want)[2]

    def resize(self, rows, columns, clear="stty size"):
        """The new size comes by another request: what is typed may be there before it."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.kill(self.pid, signal.SIGWINCH)
        self.type(b"until [ \"`stty size`\" = '%d %d' ]; do sleep 0.1; done; echo resi''zed\n" % (rows, columns))
        self.until(b"resized")

    def ends(self):
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


def docker(*args):
    return subprocess.run(["docker", *args], check=True, capture_output=True, text=True).stdout.strip()


run = ["run", "-it", "--name", "term", "--network", "none"]
at = Terminal(*run, "--rm", "busybox", "sh")
at.until(b"# ")
at.resize(31, 91)
at.type(b"tty; exit 5\n")
at.until(b"/dev/pts/")
assert at.ends() == 5

at = Terminal(*run, "busybox", "sh")
at.until(b"# ")
at.type(b"X=kept; echo se''t\n")
at.until(b"set")
at.type(DETACH)
assert at.ends() == 0
assert docker("inspect", "-f", "{{.State.Status}}", "term") == "running"
at = Terminal("attach", "term")
at.type(b"echo is $X\n")
at.until(b"is kept")
at.type(DETACH)
at.until(b"read escape sequence")
at.ends()
at = Terminal("attach", "--detach-keys", "ctrl-a,x", "term")
at.type(b"echo ag''ain\n")
at.until(b"again")
at.type(b"\x01x")
at.until(b"read escape sequence")
at.ends()
at = Terminal("exec", "-it", "term", "sh")
at.until(b"# ")
at.resize(20, 50)
at.type(b"exit 4\n")
assert at.ends() == 4
at = Terminal("attach", "term")
at.type(b"exit 7\n")
assert at.ends() == 7
at = Terminal("start", "-ai", "term")
at.until(b"# ")
at.type(b"exit 8\n")
assert at.ends() == 8
# Ctrl-C of a terminal is the workload's; without one the client passes the signal on.
docker("rm", "term")
at = Terminal(*run, "--rm", "busybox", "sh", "-c", "trap 'exit 9' INT; echo up; while :; do sleep 0.1; done")
at.until(b"up")
at.type(b"\x03")
assert at.ends() == 9
print("all of it")
