"""Files of a sandbox, from outside."""

from __future__ import annotations

import io
import os
import stat as _stat
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from adl._config import AnyHostPath, FileOptions, StrOrBytesPath, host_path
from adl._results import CopyReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from adl import _adl

__all__ = ["DirEntry", "FileReader", "FileWriter", "Files"]

_TYPES = {
    "file": _stat.S_IFREG,
    "directory": _stat.S_IFDIR,
    "symbolic_link": _stat.S_IFLNK,
    "fifo": _stat.S_IFIFO,
    "socket": _stat.S_IFSOCK,
    "character_device": _stat.S_IFCHR,
    "block_device": _stat.S_IFBLK,
}

WriteMode = Literal["replace", "new", "truncate", "append"]


class DirEntry(NamedTuple):
    """An entry of a directory."""

    name: str
    """Its name, chosen by whoever made it."""
    kind: str
    """What it is itself: ``"file"``, ``"directory"``, ``"symbolic_link"`` and so on."""

    def is_file(self) -> bool:
        """Whether it is a regular file; a symbolic link is not followed."""
        return _TYPES.get(self.kind) == _stat.S_IFREG

    def is_dir(self) -> bool:
        """Whether it is a directory; a symbolic link is not followed."""
        return _TYPES.get(self.kind) == _stat.S_IFDIR

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return _TYPES.get(self.kind) == _stat.S_IFLNK


class _RawReader(io.RawIOBase):
    def __init__(self, native: _adl.FileReader) -> None:
        self._native = native

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        read = self._native.read(len(view))
        view[: len(read)] = read
        return len(read)

    def close(self) -> None:
        if not self.closed:
            self._native.close()
        super().close()


class _RawWriter(io.RawIOBase):
    def __init__(self, native: _adl.FileWriter) -> None:
        self._native = native

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._native.write(data)

    def close(self) -> None:
        if not self.closed:
            # Closed whatever becomes of the file: its error is told once.
            super().close()
            self._native.finish()


class FileReader(io.BufferedReader):
    """A file of the sandbox that is being read, as a binary file."""


class FileWriter(io.BufferedWriter):
    """A file of the sandbox that is being written, as a binary file.

    It is put in its place by ``close``, and not before: where a ``with`` block raises, or after
    ``abandon``, what was there stays.
    """

    def __init__(self, native: _adl.FileWriter) -> None:
        self._native_writer = native
        super().__init__(_RawWriter(native))

    def abandon(self) -> None:
        """Closes it without having written anything, unless it was opened to write in place."""
        self._native_writer.abandon()
        try:
            self.close()
        except ValueError:
            pass  # What is buffered goes nowhere.

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        if not self.closed:
            self.abandon()


class Files:
    """Reads, writes and copies files of a sandbox, with the rights of one user inside.

    Paths are those inside: relative ones start at the directory of the sandbox's commands, and
    symbolic links lead to what they mean there. A call can do what a command of its user could,
    and no more. Made by ``Sandbox.files``; ``with_options`` gives others, for another user.

    Errors of all calls: ``FileError`` with the kernel's answer, which is a ``FileNotFoundError``,
    a ``PermissionError`` and so on, too; ``NotRegularError``; ``TooLargeError``;
    ``TimedOutError``; ``SandboxDiedError``; ``DeletedError``.
    """

    __slots__ = ("_native",)

    def __init__(self, native: _adl.Files) -> None:
        self._native = native

    def with_options(self, **options: Unpack[FileOptions]) -> Files:
        """Files that differ in these options: see ``FileOptions``."""
        return Files(self._native.with_options(dict(options)))

    def read_bytes(
        self, path: StrOrBytesPath, *, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Reads a regular file, or at most ``length`` bytes of it from ``offset`` on."""
        if offset == 0 and length is None:
            return self._native.read(path)
        return self._native.read_range(path, offset, 2**63 if length is None else length)

    def read_text(
        self, path: StrOrBytesPath, encoding: str = "utf-8", errors: str = "strict"
    ) -> str:
        """Reads a regular file as text."""
        return self._native.read(path).decode(encoding, errors)

    def write_bytes(
        self,
        path: StrOrBytesPath,
        data: bytes | bytearray | memoryview,
        *,
        how: WriteMode = "replace",
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Writes a file.

        ``how`` says what becomes of one that is there: ``"replace"`` puts the new one in its place
        all at once; ``"new"`` is an error; ``"truncate"`` and ``"append"`` write to the file
        itself. ``mode`` and ``owner`` (uid, gid) are by default those of the replaced file.
        """
        if isinstance(data, str):
            raise TypeError("data: expected bytes, not str: see write_text")
        self._native.write(path, data, how, mode, owner)

    def write_text(
        self,
        path: StrOrBytesPath,
        text: str,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        how: WriteMode = "replace",
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Writes text to a file: see ``write_bytes``."""
        self._native.write(path, text.encode(encoding, errors), how, mode, owner)

    def open_read(self, path: StrOrBytesPath, buffering: int = 65536) -> FileReader:
        """Opens a regular file to read it piece by piece."""
        return FileReader(_RawReader(self._native.open_read(path)), buffering)

    def open_write(
        self,
        path: StrOrBytesPath,
        *,
        how: WriteMode = "replace",
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> FileWriter:
        """Opens a file to write it piece by piece: see ``write_bytes``."""
        return FileWriter(self._native.open_write(path, how, mode, owner))

    def stat(self, path: StrOrBytesPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """What is known of a file; ``st_dev`` is 0, and owners are those inside."""
        told = self._native.stat(path, follow_symlinks)
        times = [told[name] for name in ("atime_ns", "mtime_ns", "ctime_ns")]
        seconds = [nanoseconds // 10**9 for nanoseconds in times]
        mode = _TYPES.get(told["kind"], 0) | told["mode"]
        plain = (
            mode, told["ino"], 0, told["nlink"], told["uid"], told["gid"], told["size"], *seconds
        )  # fmt: skip
        more: dict[str, Any] = {"st_blocks": told["blocks"], "st_blksize": 4096}
        for name, nanoseconds in zip(("st_atime", "st_mtime", "st_ctime"), times, strict=True):
            more[name] = nanoseconds / 1e9
            more[f"{name}_ns"] = nanoseconds
        return os.stat_result(plain, more)

    def lstat(self, path: StrOrBytesPath) -> os.stat_result:
        """What is known of a file; of a symbolic link, of the link itself."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: StrOrBytesPath) -> bool:
        """Whether something is there. What can't be found out is an error, and not False."""
        return self._native.exists(path)

    def listdir(self, path: StrOrBytesPath = ".") -> list[str]:
        """The names in a directory, in no order."""
        return [name for name, _ in self._native.scandir(path)]

    def scandir(self, path: StrOrBytesPath = ".") -> list[DirEntry]:
        """The entries of a directory, in no order."""
        return [DirEntry(name, kind) for name, kind in self._native.scandir(path)]

    def makedirs(self, path: StrOrBytesPath) -> None:
        """Makes a directory, and those above it that are missing. One that exists is no error."""
        self._native.makedirs(path)

    def remove(self, path: StrOrBytesPath) -> None:
        """Removes a file, or anything else but a directory."""
        self._native.remove(path)

    def rmtree(self, path: StrOrBytesPath) -> None:
        """Removes a directory and all that is in it. No symbolic link is followed."""
        self._native.rmtree(path)

    def rename(self, src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
        """Gives something another path, in place of what is there."""
        self._native.rename(src, dst)

    def symlink(self, src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
        """Makes a symbolic link at ``dst`` that says ``src``, whatever that may be."""
        self._native.symlink(src, dst)

    def readlink(self, path: StrOrBytesPath) -> str:
        """What a symbolic link says, as its maker chose."""
        return self._native.readlink(path)

    def chmod(self, path: StrOrBytesPath, mode: int) -> None:
        """Sets permissions. A symbolic link is followed, inside."""
        self._native.chmod(path, mode)

    def chown(
        self, path: StrOrBytesPath, uid: int, gid: int, *, follow_symlinks: bool = True
    ) -> None:
        """Sets owner and group, as they are inside; -1 leaves one as it is."""
        given = [None if number == -1 else number for number in (uid, gid)]
        self._native.chown(path, given[0], given[1], follow_symlinks)

    def copy_in(self, src: AnyHostPath, dst: StrOrBytesPath) -> CopyReport:
        """Copies a file or a directory of the host into the sandbox, where it is called ``dst``.

        A directory that is there is added to. Modes, times, links and holes are kept. The
        directory that ``dst`` is in must exist.
        """
        return CopyReport(**self._native.copy_in(host_path(src), dst))

    def copy_out(self, src: StrOrBytesPath, dst: AnyHostPath) -> CopyReport:
        """Copies a file or a directory out of the sandbox to the host, where it is called ``dst``.

        What comes is not trusted: nothing is made outside ``dst``, and no device, FIFO or socket.
        A symbolic link in it says whatever a guest wants: don't follow those you have copied.
        """
        return CopyReport(**self._native.copy_out(src, host_path(dst)))

    def import_tar(self, archive: IO[bytes], path: StrOrBytesPath) -> CopyReport:
        """Unpacks a tar archive, not compressed, in a directory of the sandbox."""
        return CopyReport(**self._native.import_tar(archive, path))

    def export_tar(self, path: StrOrBytesPath, archive: IO[bytes]) -> CopyReport:
        """Writes a directory of the sandbox as a tar archive. Names in it are the guest's."""
        return CopyReport(**self._native.export_tar(path, archive))
