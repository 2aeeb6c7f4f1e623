"""Images in layers: of layouts, archives and registries, which the tests make themselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import SOON, Layout, missing, python

import adl
from adl import Image, Images, Sandbox

CONFIG = {
    "Env": ["PATH=/bin", "OF_THE_IMAGE=1", "ALSO=a=b"],
    "WorkingDir": "/made/for/this",
    "Entrypoint": ["/bin/echo"],
    "Cmd": ["hello"],
    "Labels": {"maker": "tests"},
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGQUIT",
}


@pytest.fixture
def layout(state: Path, tmp_path: Path) -> Layout:
    """A layout with one image."""
    made = Layout(tmp_path / "layout")
    made.add("first", {"word": os.urandom(8).hex().encode()}, CONFIG)
    return made


@pytest.fixture
def images(state: Path) -> Iterator[Images]:
    """The images of a state directory in which there are none before and after."""
    found = Images()
    assert found.all() == []
    yield found
    for image in found.all():
        found.remove(image.digest)


def archive(layout: Layout, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in ("oci-layout", "index.json", "blobs"):
            tar.add(layout.path / name, name)
    return path


def test_a_path_is_a_layout_or_an_archive_by_what_lies_there(
    layout: Layout, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = archive(layout, tmp_path / "layout.tar")
    monkeypatch.chdir(tmp_path)
    for image in (
        str(layout.path),
        layout.path,
        os.fsencode(layout.path),
        "./layout",
        adl.HostPath(tmp_path, "layout"),
        Image.layers(layout.path),
        Image.layers(layout.path, "first"),
        str(tar),
        "./layout.tar",
        Image.archive(tar),
    ):
        with Sandbox(image=image) as sandbox:
            assert sandbox.run(["pwd"]).stdout == b"/made/for/this\n", image


def test_what_an_image_says_of_commands_holds_where_options_do_not(
    layout: Layout, images: Images
) -> None:
    with Sandbox(image=layout.path) as sandbox:
        assert sandbox.run("echo $OF_THE_IMAGE $ALSO").stdout == b"1 a=b\n"
        says = sandbox.image_config
        assert says is not None
        assert says.env == {"PATH": "/bin", "OF_THE_IMAGE": "1", "ALSO": "a=b"}
        assert (says.working_dir, says.user) == ("/made/for/this", None)
        assert (says.entrypoint, says.cmd) == (["/bin/echo"], ["hello"])
        assert (says.labels, says.stop_signal) == ({"maker": "tests"}, "SIGQUIT")
        assert says.exposed_ports == ["80/tcp"]
        assert sandbox.run([*says.entrypoint, *says.cmd]).stdout == b"hello\n"
        with sandbox.snapshot().fork() as fork:
            assert fork.image_config == says
    with Sandbox(image=layout.path, env={"OF_THE_IMAGE": "2"}, cwd="/bin") as sandbox:
        assert sandbox.run("echo $OF_THE_IMAGE; pwd").stdout == b"2\n/bin\n"
    with Sandbox() as sandbox:
        assert sandbox.image_config is None


def test_one_of_several_images_is_named(layout: Layout, images: Images) -> None:
    layout.add("second", {"word": b"second"}, CONFIG)
    with Sandbox(image=Image.layers(layout.path, "second")) as sandbox:
        assert sandbox.read_file("/word") == b"second"
    with pytest.raises(adl.InvalidError, match="first"):
        Sandbox(image=layout.path)
    with pytest.raises(adl.InvalidError, match="third"):
        Sandbox(image=Image.layers(layout.path, "third"))


def test_images_are_imported_listed_and_removed(layout: Layout, images: Images) -> None:
    seen: list[adl.Progress] = []
    imported = images.import_image(layout.path, "test/first:1", progress=seen.append)
    assert imported.names == ["docker.io/test/first:1"]
    assert imported.digest == layout.images[0]["digest"]
    assert len(imported.layers) == 2
    assert imported.size > len(layout.base)
    assert imported.config.cmd == ["hello"]
    assert {step.phase for step in seen} == {"unpacking"}
    assert seen[-1].layers == 2
    assert "layer 2 of 2" in str(seen[-1])

    assert images.is_there("test/first:1")
    assert not images.is_there("test/first:2")
    for name in ("test/first:1", imported.digest, imported.digest.split(":")[1][:12]):
        assert images.get(name).digest == imported.digest
    manifest, config = images.documents("test/first:1")
    assert json.loads(config)["config"] == CONFIG
    assert "sha256:" + hashlib.sha256(manifest).hexdigest() == imported.digest
    unread: list[adl.Error] = []
    assert [image.names for image in images.all(onerror=unread.append)] == [imported.names]
    assert unread == []

    with Sandbox(image="test/first:1") as sandbox:
        used = images.get("test/first:1").last_used
        assert used is not None
        assert abs(used - time.time()) < 600
        with pytest.raises(adl.BusyError, match="a sandbox"):
            images.remove("test/first:1")
        assert imported.names[0] not in images.prune(0)
        kept = sandbox.snapshot("kept")
    with pytest.raises(adl.BusyError, match="kept"):
        images.remove(imported.digest)
    kept.delete()

    images.import_image(layout.path, "other")
    assert images.remove("other") == ["docker.io/library/other:latest"]
    assert images.remove("test/first:1") == ["docker.io/test/first:1"]
    for call in (images.get, images.remove, images.documents):
        with pytest.raises(adl.NoImageError) as told:
            call("test/first:1")
        assert isinstance(told.value, LookupError)
        assert told.value.name == "test/first:1"


def test_what_is_not_used_is_pruned(layout: Layout, images: Images, tmp_path: Path) -> None:
    images.import_image(layout.path, "old")
    tree = tmp_path / "tree.tar"
    with tarfile.open(tree, "w") as tar:
        tar.add(__file__, "file")
    with Sandbox(image=tree):
        made = [image for image in images.made() if image.name.startswith("tar-")]
        assert len(made) == 1
        assert made[0].size > 0
    assert images.prune(3600) == []
    removed = images.prune(0)
    assert "docker.io/library/old:latest" in removed
    assert made[0].name in removed


def test_another_state_directory_has_others(layout: Layout, images: Images, state: Path) -> None:
    place = state.with_name("other")
    others = Images(place)
    others.import_image(layout.path, "elsewhere")
    assert [image.names for image in others.all()] == [["docker.io/library/elsewhere:latest"]]
    assert images.all() == []
    with Sandbox(image="elsewhere", state_directory=place) as sandbox:
        assert sandbox.run(["echo", "x"]).success
    adl.finish_removals()
    shutil.rmtree(place)


class Registry:
    """What serves an image of a layout on loopback."""

    def __init__(self, layout: Layout) -> None:
        blobs = layout.path / "blobs" / "sha256"
        digest, kind = layout.images[0]["digest"], layout.images[0]["mediaType"]
        registry = self
        self.asked: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                registry.may_answer.wait(10 * SOON)
                _, found, what = self.path.rpartition("/manifests/")
                name = digest if found and what == "1" else self.path.rpartition("/")[2]
                path = blobs / name.removeprefix("sha256:")
                is_one = path.is_file() or self.path == "/v2/"
                content = path.read_bytes() if path.is_file() else b"{}"
                self.send_response(200 if is_one else 404)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", kind if found else "application/octet-stream")
                if found and is_one:
                    self.send_header("Docker-Content-Digest", name)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.name = f"127.0.0.1:{self.server.server_port}/team/app"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def registry(
    layout: Layout, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    if shutil.which("skopeo") is None:
        missing("skopeo", "needs skopeo: apt-get install skopeo")
    # Logins of whoever runs the tests are no matter, nor are proxies.
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    serving = Registry(layout)
    yield serving
    serving.close()


def test_an_image_is_pulled_by_its_name(registry: Registry, images: Images) -> None:
    name = f"{registry.name}:1"
    seen: list[adl.Progress] = []
    assert not images.is_there(name)
    pulled = adl.pull(name, progress=seen.append, timeout=SOON, insecure=True)
    assert pulled.names == [name]
    assert pulled.config.labels == {"maker": "tests"}
    phases = [step.phase for step in seen]
    assert phases == sorted(phases)
    assert set(phases) == {"fetching", "unpacking"}

    asked = len(registry.asked)
    images.pull_if_missing(name, timeout=SOON)
    with Sandbox(image=name) as sandbox, Sandbox(image=Image.reference(name)) as other:
        assert sandbox.run("echo $OF_THE_IMAGE").stdout == b"1\n"
        assert other.run(["pwd"]).stdout == b"/made/for/this\n"
    assert len(registry.asked) == asked, "it was there"
    assert images.pull(name, timeout=SOON, insecure=True) == images.get(name)
    assert len(registry.asked) > asked, "the name may stand for another by now"


def test_an_image_is_pulled_from_a_coroutine(registry: Registry, images: Images) -> None:
    name = f"{registry.name}:1"

    async def main() -> None:
        seen: list[int] = []
        registry.may_answer.clear()
        # More of them than there are threads for calls that block for a moment. One of them
        # fetches the image and tells of it: the others find it there.
        pulling = [
            asyncio.ensure_future(
                images.apull(
                    name,
                    progress=lambda _: seen.append(threading.get_ident()),
                    timeout=10 * SOON,
                    insecure=True,
                )
            )
            for _ in range(5)
        ]
        async with await asyncio.wait_for(Sandbox.create(), SOON) as sandbox:
            ran = await asyncio.wait_for(sandbox.arun("echo meanwhile"), SOON)
            assert ran.stdout == b"meanwhile\n"
        assert not any(pull.done() for pull in pulling)
        registry.may_answer.set()
        assert [image.names for image in await asyncio.gather(*pulling)] == [[name]] * 5
        assert set(seen) == {threading.get_ident()}
        with pytest.raises(adl.PullError):
            await images.apull(f"{registry.name}:2", insecure=True)
        async with await Sandbox.create(image=name) as sandbox:
            assert (await sandbox.arun(["pwd"])).stdout == b"/made/for/this\n"

    asyncio.run(main())


def test_what_can_not_be_pulled_says_why(registry: Registry, images: Images) -> None:
    with pytest.raises(adl.PullError) as told:
        images.pull(f"{registry.name}:missing", insecure=True, timeout=SOON)
    error = told.value
    assert error.image == f"{registry.name}:missing"
    assert error.program == "skopeo"
    assert error.why
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.image, again.kind) == (adl.PullError, error.image, error.kind)
    with pytest.raises(adl.PullError, match="1/none"):
        Sandbox(image="127.0.0.1:1/none")

    registry.may_answer.clear()
    with pytest.raises(TimeoutError) as late:
        images.pull(f"{registry.name}:1", insecure=True, timeout=0.5)
    assert isinstance(late.value, adl.TimedOutError)
    registry.may_answer.set()

    raised = KeyError("of the caller")

    def fails(_: adl.Progress) -> None:
        raise raised

    with pytest.raises(KeyError) as its:
        images.pull(f"{registry.name}:1", insecure=True, progress=fails, timeout=SOON)
    assert its.value is raised
    # It goes on, and this waits for it.
    images.pull(f"{registry.name}:1", insecure=True, timeout=SOON)
    assert images.is_there(f"{registry.name}:1")


def test_what_is_not_kept_of_a_layer_is_told(layout: Layout, images: Images) -> None:
    layout.add("more", {"a": b"1", "b": b"2"}, {}, {"security.selinux": "1", "user.kept": "2"})
    heard: list[adl.NotKept] = []
    steps: list[adl.Progress] = []
    options: adl.PullOptions = {"not_kept": heard.append, "progress": steps.append}
    images.import_image(layout.path, "more", which="more", **options)
    told = [one for one in heard if one.attributes]
    assert [(one.layer, one.layers, one.attributes, one.nodes) for one in told] == [(2, 2, 2, 0)]
    assert {step.phase for step in steps} == {"unpacking"}


@pytest.mark.parametrize(
    ("cap", "most", "enough"),
    [("max_files", 1, 50), ("max_size", 100, 1 << 30), ("max_depth", 1, 5), ("max_ratio", 1, 1000)],
)
def test_a_layer_with_more_than_it_may_have_is_refused(
    layout: Layout, images: Images, cap: str, most: int, enough: int
) -> None:
    # What is random, so that no two are one layer.
    files = {"a/b/c": os.urandom(50), "zeros": bytes(20 << 20)}
    layout.add("much", files, {})
    # Up to a quarter of what there may be, no ratio is too large.
    options: Any = {"max_size": 64 << 20, cap: most}
    with pytest.raises(adl.TooLargeError):
        images.import_image(layout.path, "much", which="much", **options)
    assert images.all() == []
    options[cap] = enough
    images.import_image(layout.path, "much", which="much", **options)


INTERRUPTED = """
import os, signal, sys, threading
import adl

def interrupt():
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
print("begun", flush=True)
try:
    adl.pull(sys.argv[1], insecure=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_keyboard_interrupt_ends_the_wait(registry: Registry) -> None:
    registry.may_answer.clear()
    waiting = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"{registry.name}:1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "begun\n"
    end = time.monotonic() + SOON
    while not registry.asked and time.monotonic() < end:
        time.sleep(0.01)
    # The registry answers no one for as long as this takes, nor does the program wait for it.
    begin = time.monotonic()
    waiting.stdin.write("\n")
    waiting.stdin.flush()
    assert waiting.stdout.read() == "interrupted\n"
    assert waiting.wait(SOON) == 0
    assert time.monotonic() - begin < SOON / 2
    waiting.stdin.close()
    waiting.stdout.close()


NO_STR: Any = 5


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda images: images.pull("Capital"), adl.InvalidError, "Capital"),
        (lambda images: images.pull("a b"), ValueError, "a b"),
        (lambda images: images.pull("host:x/y/"), adl.InvalidError, "y/"),
        (lambda images: images.pull("\udcff"), adl.InvalidError, "name: it is not UTF-8"),
        (lambda images: images.get("\udcff"), adl.InvalidError, "name: it is not UTF-8"),
        (lambda images: images.pull(5), TypeError, "str"),
        (lambda images: images.pull(b"debian:12"), TypeError, "str"),
        (lambda images: images.pull("x", timeout=-1), ValueError, "timeout"),
        (lambda images: images.pull("x", timeout="1"), TypeError, "timeout"),
        (lambda images: images.pull("x", progress=5), TypeError, "progress: expected a callable"),
        (lambda images: images.pull("x", ids=-1), ValueError, "ids"),
        (lambda images: images.pull("x", not_kept=5), TypeError, "not_kept: expected a callable"),
        (lambda images: images.pull("x", max_size=-1), ValueError, "max_size"),
        (lambda images: images.pull("x", max_files="1"), TypeError, "max_files"),
        (lambda images: images.pull("x", no_such=1), TypeError, "no_such"),
        (lambda images: images.is_there("A"), adl.InvalidError, "A"),
        (lambda images: images.get("no-such"), adl.NoImageError, "no-such"),
        (lambda images: images.prune(-1), ValueError, "seconds"),
        (lambda images: images.import_image("/no/such"), FileNotFoundError, "/no/such"),
        (lambda images: images.import_image("/etc"), adl.InvalidError, "OCI image layout"),
        (lambda images: images.import_image(5), TypeError, "expected str"),
        (lambda images: images.import_image("a\0b"), adl.InvalidError, "path"),
        (lambda images: Images(NO_STR), TypeError, "int"),
        (lambda images: Sandbox(image="No-Name"), adl.InvalidError, "No-Name"),
        (lambda images: Sandbox(image=Image.reference(NO_STR)), TypeError, "image"),
        (lambda images: Sandbox(image=Image.layers("/no/such")), FileNotFoundError, "/no/such"),
        (lambda images: Sandbox(image=Image.layers("/etc", NO_STR)), TypeError, "image"),
    ],
)
def test_what_makes_no_sense_is_said(
    images: Images, call: Callable[[Images], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(images)


def test_an_image_that_is_deleted_is_an_error(layout: Layout, images: Images) -> None:
    image = Image.layers(layout.path)
    with Sandbox(image=image) as sandbox:
        shutil.rmtree(layout.path)
        with pytest.raises(FileNotFoundError, match="layout"):
            Sandbox(image=image)
        # What it was unpacked to is held.
        sandbox.reset()
        assert sandbox.run(["echo", "on"]).stdout == b"on\n"


def test_a_layer_that_lies_is_refused(state: Path, images: Images, tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout")
    digest = made.add("first", {"../outside": b"x"}, {})
    with pytest.raises(adl.RefusedError, match="outside"):
        images.import_image(made.path, "lies")
    blob = made.path / "blobs" / "sha256" / digest.removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion": 3'))
    with pytest.raises(adl.InvalidError, match="has other bytes"):
        images.import_image(made.path, "lies")
    assert images.all() == []


def test_progress_is_shown_as_people_read_it() -> None:
    fetching = adl.Progress("fetching", 1, 3, 3 << 20, 12 << 20)
    assert str(fetching) == "fetching: 1 of 3 layers, 3.0 of 12.0 MiB"
    assert str(fetching._replace(phase="unpacking")) == ("unpacking: layer 1 of 3, 3.0 of 12.0 MiB")


def test_sigchld_that_is_ignored_changes_nothing(registry: Registry) -> None:
    script = """
import signal, sys
import adl
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(adl.pull(sys.argv[1], insecure=True, timeout=60).names[0])
"""
    assert python(script, f"{registry.name}:1") == f"{registry.name}:1\n"
