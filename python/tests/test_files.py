"""Files of a sandbox, from outside."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_root

import adl
from adl import Sandbox


def test_what_is_written_is_read(image: str) -> None:
    with Sandbox(image=image) as sandbox:
        files = sandbox.files
        for path in ("/tmp/str", b"/tmp/bytes", Path("/tmp/path"), "/tmp/\udcff"):
            for data in (b"", b"\xff\0x", bytearray(b"array"), memoryview(b"view"), b"x" * 300_000):
                files.write_bytes(path, data)
                assert files.read_bytes(path) == bytes(data)
        assert "\udcff" in files.listdir("/tmp")
        assert sandbox.run(["ls", b"/tmp/\xff"]).success
        files.write_text("/tmp/text", "é", "latin-1")
        assert files.read_bytes("/tmp/text") == b"\xe9"
        assert files.read_text("/tmp/text", "latin-1") == "é"
        sandbox.write_file("/tmp/text", "é")
        assert sandbox.read_file("/tmp/text") == "é".encode()


def test_how_says_what_becomes_of_a_file_that_is_there(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write_bytes("/f", b"one", mode=0o640)
    inode = files.stat("/f").st_ino
    files.write_bytes("/f", b"two", how="truncate")
    files.write_bytes("/f", b"three", how="append")
    assert (files.read_bytes("/f"), files.stat("/f").st_ino) == (b"twothree", inode)
    with pytest.raises(FileExistsError):
        files.write_bytes("/f", b"", how="new")
    files.write_bytes("/f", b"four")
    assert files.stat("/f").st_ino != inode
    assert stat.S_IMODE(files.stat("/f").st_mode) == 0o640
    assert files.read_bytes("/f", offset=1, length=2) == b"ou"
    assert files.read_bytes("/f", offset=2) == b"ur"
    with pytest.raises(TypeError, match="not str"):
        files.write_bytes("/f", "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not one of"):
        files.write_bytes("/f", b"", how="over")  # type: ignore[arg-type]


def test_a_tree_is_made_looked_at_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files.with_options(cwd="/home")
    files.makedirs("a/b")
    files.makedirs("a/b")
    files.write_bytes("a/file", b"12345")
    files.symlink("file", "a/link")
    sandbox.run("mkfifo /home/a/fifo", check=True)
    assert sorted((it.name, it.kind) for it in files.scandir("a")) == [
        ("b", "directory"),
        ("fifo", "fifo"),
        ("file", "file"),
        ("link", "symbolic_link"),
    ]
    kinds = {it.name: (it.is_file(), it.is_dir(), it.is_symlink()) for it in files.scandir("a")}
    assert kinds["b"] == (False, True, False)
    assert kinds["file"] == (True, False, False)
    assert kinds["link"] == (False, False, True)
    assert files.readlink("a/link") == "file"
    found = files.stat("a/link")
    assert isinstance(found, os.stat_result)
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_size, found.st_uid) == (5, 0)
    assert found.st_mtime_ns // 10**9 == int(found.st_mtime)
    assert stat.S_ISLNK(files.lstat("a/link").st_mode)
    files.chmod("a/file", 0o600)
    assert stat.S_IMODE(files.stat("a/file").st_mode) == 0o600
    files.rename("a/file", "a/renamed")
    assert not files.exists("a/link")
    files.remove("a/link")
    files.rmtree("a")
    assert files.listdir() == []


@needs_root
def test_calls_are_made_with_the_rights_of_a_user(sandbox: Sandbox) -> None:
    sandbox.files.write_bytes("/secret", b"x", mode=0o600)
    files = sandbox.files.with_options(user=1000)
    with pytest.raises(PermissionError) as told:
        files.read_bytes("/secret")
    assert isinstance(told.value, adl.FileError)
    assert told.value.path == "/secret"
    files.write_bytes("/tmp/mine", b"")
    assert files.stat("/tmp/mine").st_uid == 1000
    sandbox.files.chown("/tmp/mine", 5, -1)
    assert sandbox.files.stat("/tmp/mine").st_uid == 5
    sandbox.files.write_bytes("/owned", b"", owner=(6, 7))
    assert sandbox.files.stat("/owned").st_gid == 7


def test_errors_are_pythons_own(sandbox: Sandbox) -> None:
    files = sandbox.files
    for call, error in (
        (lambda: files.read_bytes("/missing"), FileNotFoundError),
        (lambda: files.read_bytes("/tmp"), IsADirectoryError),
        (lambda: files.listdir("/etc/passwd"), NotADirectoryError),
        (lambda: files.remove("/missing"), FileNotFoundError),
        (lambda: files.copy_out("/missing", "/var/tmp/x"), FileNotFoundError),
        (lambda: files.copy_in("/missing", "/x"), FileNotFoundError),
        (lambda: files.read_bytes("/dev/null"), adl.NotRegularError),
        (lambda: files.with_options(limit=3).read_bytes("/etc/passwd"), adl.TooLargeError),
    ):
        with pytest.raises(error) as told:
            call()
        assert isinstance(told.value, adl.Error)
    with pytest.raises(TypeError, match="expected str, bytes"):
        files.read_bytes(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option"):
        files.with_options(no_such=1)  # type: ignore[call-arg]
    with pytest.raises(adl.InvalidError):
        files.read_bytes("a\0b")


def test_a_file_is_streamed(sandbox: Sandbox) -> None:
    data = os.urandom(1 << 20)
    with sandbox.files.open_write("/f") as file:
        for start in range(0, len(data), 10_000):
            file.write(data[start : start + 10_000])
        assert not sandbox.files.exists("/f")
    assert sandbox.read_file("/f") == data
    with sandbox.files.open_read("/f") as reader:
        assert reader.read(5) == data[:5]
        assert reader.read() == data[5:]
        assert reader.read() == b""
    with pytest.raises(ValueError, match="closed"):
        reader.read()
    with io.TextIOWrapper(sandbox.files.open_read("/etc/passwd")) as lines:
        assert next(lines).startswith("root:")


def test_what_is_not_finished_changes_nothing(sandbox: Sandbox) -> None:
    sandbox.write_file("/f", b"old")

    def fails() -> None:
        with sandbox.files.open_write("/f") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    file = sandbox.files.open_write("/f")
    file.write(b"new" * 10_000)
    file.abandon()
    file = sandbox.files.open_write("/f")
    file.write(b"new" * 10_000)
    del file
    assert sandbox.read_file("/f") == b"old"
    with pytest.raises(FileNotFoundError):
        sandbox.files.open_write("/missing/f").close()


def test_trees_are_copied_both_ways(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"x" * 100)
    (source / "sub" / "link").symlink_to("../file")
    report = sandbox.copy_in(source, "/copied")
    assert (report.files, report.directories, report.symbolic_links) == (1, 2, 1)
    assert report.bytes == 100
    assert sandbox.run("cat /copied/sub/link").stdout == b"x" * 100
    sandbox.run("mkfifo /copied/fifo", check=True)
    report = sandbox.copy_out("/copied", adl.HostPath(tmp_path, "back"))
    assert report.skipped == [("fifo", "fifo")]
    assert (tmp_path / "back" / "sub" / "link").readlink() == Path("../file")

    # What a guest has made a link leads nowhere.
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(adl.Error):
        sandbox.copy_out("/copied", adl.HostPath(tmp_path, "out/x"))


def test_archives_go_in_and_out(sandbox: Sandbox) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("dir/file")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    archive.seek(0)
    assert sandbox.files.import_tar(archive, "/tmp").files == 1
    assert sandbox.read_file("/tmp/dir/file") == b"hello"
    out = io.BytesIO()
    sandbox.files.export_tar("/tmp/dir", out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        extracted = tar.extractfile("file")
        assert extracted is not None
        assert extracted.read() == b"hello"


def test_what_a_file_of_the_callers_raises_is_raised(sandbox: Sandbox) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise RuntimeError("broken")

        def write(self, data: object) -> int:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sandbox.files.import_tar(Broken(), "/tmp")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken"):
        sandbox.files.export_tar("/etc", Broken())  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        sandbox.files.import_tar(5, "/tmp")  # type: ignore[arg-type]


def test_a_file_that_wrote_more_than_it_was_given_is_an_error(sandbox: Sandbox) -> None:
    class Boasts(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data) + 1

    with pytest.raises(ValueError, match="more than it was given"):
        sandbox.files.export_tar("/etc", Boasts())
