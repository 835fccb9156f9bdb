"""What is measured with: a large and a tiny image in a registry on localhost, and a bundle for runc."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

HOST = "127.0.0.1:5001"
TINY = f"{HOST}/tiny:1"
LARGE = f"{HOST}/debian:1"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def debian_layer(output):
    """A Debian with Python as one layer, plain and gzipped: made once, some 45 s."""
    plain, packed = output / "layer.tar", output / "layer.tar.gz"
    if not plain.exists():
        print("making a Debian layer with mmdebstrap", flush=True)
        new = output / ".layer.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--include=python3", "bookworm", str(new)], check=True)
        new.rename(plain)
    if not packed.exists():
        new = output / ".layer.tar.gz"
        with open(new, "wb") as sink:
            subprocess.run(["gzip", "-nc", str(plain)], stdout=sink, check=True)
        new.rename(packed)
    return plain, packed


def text(work):
    """245 MB of lines as programs print them, with long ones among them."""
    words = "Unpacking the layer of an image to /var/lib/store, 17 of 4096 entries done: ok".split()
    lengths = (8, 16, 24, 400)
    lines = [" ".join(words[(line + at) % len(words)] for at in range(lengths[line % len(lengths)])) for line in range(4000)]
    block = "\n".join([*lines, ""]).encode()
    path = work / "text"
    with open(path, "wb") as file:
        for _ in range(245_000_000 // len(block)):
            file.write(block)
    return path


def tiny_layer():
    """busybox and the few names that the rows use."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("bin", "etc", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        program = Path("/bin/busybox").read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program))
        for name in ("sh", "true", "cat", "sleep"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return plain.getvalue()


class Registry:
    """docker-registry on localhost, with the images in it."""

    def __init__(self, work, output, rows):
        self.work, self.output, self.rows = work, output, rows

    def __enter__(self):
        settings = self.work / "registry.yml"
        storage = self.work / "registry"
        settings.write_text(f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '{HOST}'}}\n")
        log = open(self.work / "registry.log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://{HOST}/v2/").close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        plain = tiny_layer()
        self.push("tiny", hashlib.sha256(plain).hexdigest(), gzip.compress(plain, mtime=0))
        if "pull" in self.rows:
            tar, packed = debian_layer(self.output)
            with open(tar, "rb") as file:
                self.push("debian", hashlib.file_digest(file, "sha256").hexdigest(), packed.read_bytes())
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    @staticmethod
    def blob(repository, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        start = urllib.request.Request(f"http://{HOST}/v2/{repository}/blobs/uploads/", method="POST", data=b"")
        with urllib.request.urlopen(start) as answer:
            place = answer.headers["Location"]
        upload = urllib.request.Request(f"{place}&digest={digest}", method="PUT", data=data)
        upload.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(upload).close()
        return {"size": len(data), "digest": digest}

    def push(self, repository, diff_id, packed):
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self.blob(repository, json.dumps(config).encode())},
            "layers": [{"mediaType": LAYER, **self.blob(repository, packed)}],
        }
        request = urllib.request.Request(f"http://{HOST}/v2/{repository}/manifests/1", method="PUT", data=json.dumps(manifest).encode())
        request.add_header("Content-Type", MANIFEST)
        urllib.request.urlopen(request).close()


def bundle(work):
    """A root of the tiny image and a prepared bundle around it: what runc and unshare start."""
    directory = work / "bundle"
    root = directory / "rootfs"
    root.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(tiny_layer())) as tar:
        tar.extractall(root, filter="fully_trusted") if hasattr(tarfile, "fully_trusted_filter") else tar.extractall(root)
    subprocess.run(["runc", "spec", "--bundle", str(directory)], check=True)
    path = directory / "config.json"
    spec = json.loads(path.read_text())
    spec["process"].update(terminal=False, args=["true"], rlimits=[])
    path.write_text(json.dumps(spec))
    return directory
