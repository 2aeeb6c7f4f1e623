"""What the tests stand on."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import adl

SOON = 30.0
"""More seconds than a machine under load takes for anything here."""

IMAGES = ["host", *filter(None, [os.environ.get("ADL_TEST_IMAGE")])]
"""The host's programs, and where one is named a directory with a root file system."""


def within(condition: Callable[[], object], seconds: float = SOON) -> bool:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def python(script: str, *args: str, timeout: float = 120) -> str:
    """Runs a program in a session of its own, of which nothing is left when it takes too long."""
    command = [sys.executable, "-c", script, *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, stderr
    return stdout


def missing(what: str, why: str) -> NoReturn:
    """Skips a test, or fails it where this machine was said to have what it needs."""
    if what in os.environ.get("ADL_EXPECT", "").split(","):
        pytest.fail(why)
    pytest.skip(why)


PROGRAMS = ("sh", "cat", "echo", "env", "pwd", "id", "ls", "sleep")


def busybox() -> bytes:
    for place in filter(None, ("/bin/busybox", shutil.which("busybox"))):
        if Path(place).is_file():
            return Path(place).read_bytes()
    missing("busybox", "needs busybox: apt-get install busybox-static")


def layer(
    files: dict[str, bytes], links: tuple[str, ...] = (), attributes: dict[str, str] | None = None
) -> bytes:
    """A layer, as it comes: a compressed archive."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            info.pax_headers = {f"SCHILY.xattr.{key}": it for key, it in (attributes or {}).items()}
            tar.addfile(info, io.BytesIO(content))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(info)
    return gzip.compress(plain.getvalue(), 1)


class Layout:
    """An OCI image layout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.base = layer(
            {"bin/busybox": busybox(), "etc/passwd": b"root:x:0:0::/:/bin/sh\n"},
            tuple(f"bin/{name}" for name in PROGRAMS),
        )

    def blob(self, kind: str, content: bytes) -> dict[str, Any]:
        digits = hashlib.sha256(content).hexdigest()
        (self.path / "blobs" / "sha256" / digits).write_bytes(content)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digits}", "size": len(content)}

    def add(
        self,
        tag: str,
        files: dict[str, bytes],
        config: dict[str, Any],
        attributes: dict[str, str] | None = None,
    ) -> str:
        """Adds an image of the base and a layer above it, whose files have extended attributes; its
        digest."""
        layers = [self.base, layer(files, attributes=attributes)]
        plain = [hashlib.sha256(gzip.decompress(one)).hexdigest() for one in layers]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{one}" for one in plain]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob("config.v1+json", json.dumps(document).encode()),
            "layers": [self.blob("layer.v1.tar+gzip", one) for one in layers],
        }
        entry = self.blob("manifest.v1+json", json.dumps(manifest).encode())
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.images.append(entry)
        (self.path / "index.json").write_text(
            json.dumps({"schemaVersion": 2, "manifests": self.images})
        )
        return str(entry["digest"])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """A state directory of the tests' own, in which nothing is left at their end."""
    place = Path(tempfile.mkdtemp(prefix="adl-python-", dir="/var/tmp"))
    os.environ["ADL_STATE_DIR"] = str(place / "state")
    yield place / "state"
    # Snapshots that only a traceback holds.
    gc.collect()

    def is_empty() -> bool:
        # What other processes have left that were killed; of this one, nothing is collected.
        adl.collect_garbage()
        adl.finish_removals()
        kinds = ("sandboxes", "snapshots")
        return not any(list((place / "state" / kind).glob("*")) for kind in kinds)

    assert within(is_empty), "left on disk"
    shutil.rmtree(place)


@pytest.fixture
def sandbox(state: Path) -> Iterator[adl.Sandbox]:
    """A sandbox on the programs of this machine."""
    with adl.Sandbox() as made:
        yield made


@pytest.fixture(params=IMAGES, ids=lambda image: "host" if image == "host" else "directory")
def image(request: pytest.FixtureRequest, state: Path) -> str:
    """Each of the images."""
    return str(request.param)


@pytest.fixture
def limited(state: Path) -> Iterator[adl.Sandbox]:
    """A sandbox with a limit, where this machine has cgroups for that."""
    try:
        made = adl.Sandbox(limits=adl.Limits(accounting=True))
    except adl.UnsupportedError as error:
        missing("cgroups", str(error))
    with made:
        yield made
