"""``AsyncFiles``: the files of a sandbox from coroutines."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from adl._async import in_file_thread
from adl._config import AnyHostPath, FileOptions, StrOrBytesPath
from adl._results import CopyReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from adl._files import DirEntry, Files, WriteMode

__all__ = ["AsyncFiles"]


class AsyncFiles:
    """``Files`` from coroutines, made by ``Sandbox.afiles``: other tasks run while a call waits."""

    __slots__ = ("_files",)

    def __init__(self, files: Files) -> None:
        self._files = files

    def with_options(self, **options: Unpack[FileOptions]) -> AsyncFiles:
        """Files that differ in these options: see ``FileOptions``."""
        return AsyncFiles(self._files.with_options(**options))

    async def read_bytes(
        self, path: StrOrBytesPath, *, offset: int = 0, length: int | None = None
    ) -> bytes:
        """See ``Files.read_bytes``."""
        return await in_file_thread(
            lambda: self._files.read_bytes(path, offset=offset, length=length)
        )

    async def read_text(
        self, path: StrOrBytesPath, encoding: str = "utf-8", errors: str = "strict"
    ) -> str:
        """See ``Files.read_text``."""
        return await in_file_thread(lambda: self._files.read_text(path, encoding, errors))

    async def write_bytes(
        self,
        path: StrOrBytesPath,
        data: bytes | bytearray | memoryview,
        *,
        how: WriteMode = "replace",
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """See ``Files.write_bytes``."""
        await in_file_thread(
            lambda: self._files.write_bytes(path, data, how=how, mode=mode, owner=owner)
        )

    async def write_text(
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
        """See ``Files.write_text``."""
        await in_file_thread(
            lambda: self._files.write_text(
                path, text, encoding, errors, how=how, mode=mode, owner=owner
            )
        )

    async def stat(self, path: StrOrBytesPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """See ``Files.stat``."""
        return await in_file_thread(lambda: self._files.stat(path, follow_symlinks=follow_symlinks))

    async def exists(self, path: StrOrBytesPath) -> bool:
        """See ``Files.exists``."""
        return await in_file_thread(lambda: self._files.exists(path))

    async def listdir(self, path: StrOrBytesPath = ".") -> list[str]:
        """See ``Files.listdir``."""
        return await in_file_thread(lambda: self._files.listdir(path))

    async def scandir(self, path: StrOrBytesPath = ".") -> list[DirEntry]:
        """See ``Files.scandir``."""
        return await in_file_thread(lambda: self._files.scandir(path))

    async def makedirs(self, path: StrOrBytesPath) -> None:
        """See ``Files.makedirs``."""
        await in_file_thread(lambda: self._files.makedirs(path))

    async def remove(self, path: StrOrBytesPath) -> None:
        """See ``Files.remove``."""
        await in_file_thread(lambda: self._files.remove(path))

    async def rmtree(self, path: StrOrBytesPath) -> None:
        """See ``Files.rmtree``."""
        await in_file_thread(lambda: self._files.rmtree(path))

    async def rename(self, src: StrOrBytesPath, dst: StrOrBytesPath) -> None:
        """See ``Files.rename``."""
        await in_file_thread(lambda: self._files.rename(src, dst))

    async def copy_in(self, src: AnyHostPath, dst: StrOrBytesPath) -> CopyReport:
        """See ``Files.copy_in``."""
        return await in_file_thread(lambda: self._files.copy_in(src, dst))

    async def copy_out(self, src: StrOrBytesPath, dst: AnyHostPath) -> CopyReport:
        """See ``Files.copy_out``."""
        return await in_file_thread(lambda: self._files.copy_out(src, dst))

    async def import_tar(self, archive: IO[bytes], path: StrOrBytesPath) -> CopyReport:
        """See ``Files.import_tar``."""
        return await in_file_thread(lambda: self._files.import_tar(archive, path))

    async def export_tar(self, path: StrOrBytesPath, archive: IO[bytes]) -> CopyReport:
        """See ``Files.export_tar``."""
        return await in_file_thread(lambda: self._files.export_tar(path, archive))
