"""What makes no sense, for every call that there is: an error of the right class, and no harm."""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import adl
from adl import AsyncFiles, Files, Images, Limits, Sandbox, Snapshot

Calls = dict[str, tuple[Any, ...]]

LIFE: Calls = {
    "run": (["true"],),
    "popen": (["true"],),
    "background": (["true"],),
    "jobs": (),
    "job": (1,),
    "kill_all": (),
    "read_file": ("/etc/passwd",),
    "write_file": ("/f", b"x"),
    "copy_in": ("file", "/copied"),
    "copy_out": ("/etc/passwd", "out"),
    "reset": (),
    "snapshot": (),
    "fork": (),
    "changes": (),
    "set_limits": (Limits(),),
    "stats": (),
    "freeze": (),
    "thaw": (),
    "pidfd": (),
    "connect": ("127.0.0.1:9",),
    "connect_unix": ("/missing",),
    "listen": ("127.0.0.1:0",),
    "publish": ("127.0.0.1:0", 80),
    "forward": (0, "127.0.0.1:9"),
    "close_port": ("none",),
    "watch_connections": (print,),
    "aconnect": ("127.0.0.1:9",),
    "aconnect_unix": ("/missing",),
    "arun": (["true"],),
    "apopen": (["true"],),
    "areset": (),
    "asnapshot": (),
    "afork": (),
}
ENDS = {"create", "delete", "adelete"}
FILES: Calls = {
    "read_bytes": ("/etc/passwd",),
    "read_text": ("/etc/passwd",),
    "write_bytes": ("/f", b"x"),
    "write_text": ("/f", "x"),
    "open_read": ("/etc/passwd",),
    "open_write": ("/f",),
    "stat": ("/etc",),
    "lstat": ("/etc",),
    "exists": ("/etc",),
    "listdir": ("/etc",),
    "scandir": ("/etc",),
    "makedirs": ("/d",),
    "remove": ("/f",),
    "rmtree": ("/d",),
    "rename": ("/f", "/g"),
    "symlink": ("/f", "/link"),
    "readlink": ("/link",),
    "chmod": ("/f", 0o600),
    "chown": ("/f", 0, 0),
    "copy_in": ("file", "/copied"),
    "copy_out": ("/etc/passwd", "out"),
    "import_tar": (open, "/d"),
    "export_tar": ("/etc", open),
}
SNAPSHOTS: Calls = {
    "open": ("kept",),
    "names": (),
    "remove": ("other",),
    "fork": (),
    "changes": (),
    "export": (open,),
    "delete": (),
    "replace": ("other",),
}
IMAGES: Calls = {
    "pull": ("127.0.0.1:1/none",),
    "pull_if_missing": ("127.0.0.1:1/none",),
    "apull": ("127.0.0.1:1/none",),
    "import_image": ("file",),
    "is_there": ("name",),
    "all": (),
    "get": ("name",),
    "documents": ("name",),
    "made": (),
    "remove": ("name",),
    "prune": (1e9,),
}

STRANGE: list[Any] = [
    object(),
    5,
    -1,
    2**70,
    1.5,
    math.nan,
    "",
    "a\0b",
    "\udcff",
    b"\xff",
    [],
    {"a": 1},
    (1, 2, 3),
    print,
]
"""What no call takes in all its places."""

ERRORS = (TypeError, ValueError, OverflowError, LookupError, OSError, AttributeError, adl.Error)


def public(cls: type) -> set[str]:
    """The names of the methods of a class that are for callers."""
    names = (name for name in vars(cls) if not name.startswith("_"))
    return {name for name in names if callable(getattr(cls, name))}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to be in, with a file."""
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert (tmp_path / "file").read_bytes() == b"x"


def call(method: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Calls something, in an event loop if that is what it needs, and closes what that returns."""

    async def main() -> Any:
        return await asyncio.wait_for(method(*args, **options), 60)

    got = asyncio.run(main()) if inspect.iscoroutinefunction(method) else method(*args, **options)
    for name in ("delete", "kill", "close"):
        ends = (Sandbox, adl.Popen, adl.Job, adl.FileReader, socket.socket)
        if isinstance(got, ends) and hasattr(got, name):
            getattr(got, name)()


def test_what_is_tried_here_is_all_that_there_is() -> None:
    assert public(Sandbox) == {*LIFE, *ENDS}
    assert public(Files) == {*FILES, "with_options"}
    assert public(AsyncFiles) <= {*FILES, "with_options"}
    assert public(Snapshot) == set(SNAPSHOTS)
    assert public(Images) == set(IMAGES)


def test_a_deleted_sandbox_says_so_whatever_it_is_asked(state: Path, here: Path) -> None:
    sandbox = Sandbox()
    files, afiles = sandbox.files, sandbox.afiles
    port = sandbox.publish("127.0.0.1:0", 80)
    sandbox.delete()
    for name, args in {**LIFE, "close_port": (port,)}.items():
        if name not in ("jobs", "job"):
            with pytest.raises(adl.DeletedError, match="deleted: create another"):
                call(getattr(sandbox, name), *args)
    assert (sandbox.jobs(), sandbox.job(1)) == ([], None)
    with here.joinpath("file").open("r+b") as archive:
        for name, args in FILES.items():
            given = [archive if it is open else it for it in args]
            for of in (files, files.with_options(user=1), afiles):
                if hasattr(of, name):
                    with pytest.raises(adl.DeletedError, match="deleted"):
                        call(getattr(of, name), *given)
    for again in (sandbox.delete, sandbox.adelete):
        call(again)
    assert not sandbox.is_alive
    assert sandbox.name
    assert "adl.Sandbox" in repr(sandbox)


def strangely(of: Any, calls: Calls, archive: Any) -> Iterator[tuple[str, Exception | None]]:
    """Makes each call with something strange in the place of each argument, and yields what it was
    and what that has raised."""
    for name, args in calls.items():
        method = getattr(of, name)
        given = [archive if it is open else it for it in args]
        for where, parameter in enumerate(inspect.signature(method).parameters.values()):
            for strange in STRANGE:
                if is_no_matter(name, parameter.name, strange):
                    continue
                tried, options = list(given), {}
                if parameter.kind is parameter.VAR_KEYWORD:
                    options = {"no_such_option": strange}
                elif where < len(given):
                    tried[where] = strange
                else:
                    options = {parameter.name: strange}
                error: Exception | None = None
                try:
                    call(method, *tried, **options)
                except ERRORS as raised:
                    error = raised
                yield f"{type(of).__name__}.{name}({parameter.name}={strange!r})", error


def is_no_matter(name: str, parameter: str, strange: Any) -> bool:
    """Whether a call is not to be made."""
    if parameter in ("stdin", "stdout", "stderr") and isinstance(strange, int):
        return True  # A descriptor of this process, which others use.
    # These do what `pull` does, which takes a while.
    return name in ("pull_if_missing", "apull")


def test_strange_arguments_are_refused_or_mean_something(
    sandbox: Sandbox, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox.files.write_bytes("/f", b"x")
    told: list[tuple[str, Exception | None]] = []
    with here.joinpath("archive").open("w+b") as archive:
        few = sandbox.files.with_options(limit=1 << 16, entry_limit=100)
        for of, calls in ((sandbox, LIFE), (few, FILES), (Images(), IMAGES)):
            told += strangely(of, calls, archive)
        kept = sandbox.snapshot("kept", running="end")
        told += strangely(kept, SNAPSHOTS, archive)
        # The sandbox lies on it.
        sandbox.reset()
        kept.delete()
    for text, error in told:
        if error is None:
            assert "no_such_option" not in text, "an option that there is not was taken"
            # Any object is true or false, and some are looked at by Python when they are used.
            loose = r"[(](check|text|errors|bufsize|onerror|progress)="
            assert "<object object" not in text or re.search(loose, text), text
        else:
            assert 0 < len(str(error)) < 1000, text
    assert len(told) > 1000
    assert sandbox.run("echo alive").stdout == b"alive\n"
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "make",
    [
        lambda sandbox: Sandbox(name="\udcff"),
        lambda sandbox: Sandbox(hostname="\udcff"),
        lambda sandbox: Sandbox(user="\udcff"),
        lambda sandbox: Sandbox(network="\udcff"),
        lambda sandbox: Sandbox(image="snapshot:\udcff"),
        lambda sandbox: Sandbox(image="\udcff"),
        lambda sandbox: Sandbox(sysctls={"\udcff": 1}),
        lambda sandbox: Sandbox(capabilities=["\udcff"]),
        lambda sandbox: Sandbox(limits=Limits(cpuset="\udcff")),
        lambda sandbox: sandbox.run("true", user="\udcff"),
        lambda sandbox: sandbox.run("true", leftovers="\udcff"),
        lambda sandbox: sandbox.snapshot("\udcff"),
        lambda sandbox: Snapshot.open("\udcff"),
        lambda sandbox: Snapshot.remove("\udcff"),
    ],
)
def test_names_that_are_not_utf_8_are_refused(
    sandbox: Sandbox, make: Callable[[Sandbox], object]
) -> None:
    with pytest.raises(ValueError, match="UTF-8") as told:
        make(sandbox)
    assert not isinstance(told.value, UnicodeError)
    assert sandbox.run("true").success


def test_names_of_files_and_words_of_commands_may_be_any_bytes(
    sandbox: Sandbox, here: Path
) -> None:
    files = sandbox.files
    for name, raw in (("/tmp/\udcff", b"/tmp/\xff"), ("/tmp/\u00e9", "/tmp/\u00e9".encode())):
        files.write_bytes(raw, b"x")
        assert files.read_bytes(name) == b"x"
        assert name.rpartition("/")[2] in files.listdir("/tmp")
        assert sandbox.run(["cat", name]).stdout == b"x"
        assert sandbox.run(["cat", raw], env={"A": name}).stdout == b"x"
        assert sandbox.run(f"cat {name}").stdout == b"x"
        files.copy_out(name, here / "out\udcff")
        files.copy_in(b"out\xff", name + "\udcfe")
        assert files.exists(raw + b"\xfe")
        assert (name, "added") in [tuple(change) for change in sandbox.changes()]
    files.makedirs("/\udcff")
    assert sandbox.run(["pwd"], cwd="/\udcff").stdout == b"/\xff\n"
    with pytest.raises(FileNotFoundError) as told:
        files.read_bytes("/missing\udcff")
    assert "missing" in str(told.value)
    assert str(told.value).isprintable()
