"""Snapshots, and what concerns the state directory as a whole."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Literal

from adl import _adl
from adl._config import Seconds, StrOrBytesPath
from adl._results import Change, Check, CopyReport

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from adl._config import SandboxOptions
    from adl._sandbox import Sandbox

__all__ = [
    "Snapshot",
    "blanks_ready",
    "collect_garbage",
    "examine",
    "finish_removals",
    "keep_blanks",
    "pending_removals",
    "wait_at_exit",
]


class Snapshot:
    """What a sandbox had written at a moment, on disk, for others to begin with.

    It holds what was changed of the root file system, and nothing that was in memory. One without
    a name of its own is removed when neither a ``Snapshot`` nor a sandbox on it is there any more.
    """

    __slots__ = ("_native",)

    def __init__(self, native: _adl.Snapshot) -> None:
        self._native = native

    @classmethod
    def open(cls, name: str, *, state_directory: StrOrBytesPath | None = None) -> Snapshot:
        """Opens the snapshot of a name; ``NoSnapshotError`` if there is none."""
        return cls(_adl.open_snapshot(state_directory, name))

    @staticmethod
    def names(*, state_directory: StrOrBytesPath | None = None) -> list[str]:
        """The names of all snapshots that have one, sorted."""
        return _adl.list_snapshots(state_directory)

    @staticmethod
    def remove(name: str, *, state_directory: StrOrBytesPath | None = None) -> None:
        """Removes the snapshot of a name; ``BusyError`` if something lies on it."""
        _adl.remove_snapshot(state_directory, name)

    @property
    def name(self) -> str:
        """Its name. One that begins with a dot was made up."""
        return self._native.name

    @property
    def made_at(self) -> float | None:
        """When it was made, in seconds since 1970; None if the file system does not tell."""
        return self._native.made_at

    @property
    def lies_on(self) -> str | None:
        """The snapshot that it lies on directly, if there is one."""
        return self._native.lies_on

    def fork(self, **options: Unpack[SandboxOptions]) -> Sandbox:
        """Makes a sandbox that begins with it: any number of them, each in about a millisecond.

        It is configured as the sandbox that the snapshot was made of, but for ``options``.
        """
        from adl._sandbox import Sandbox

        options["image"] = self
        return Sandbox(**options)

    def changes(self) -> list[Change]:
        """What differs from the image that the sandbox was made of, sorted by path."""
        return [Change(*change) for change in self._native.changes()]

    def export(self, archive: IO[bytes], what: Literal["layer", "tree"] = "layer") -> CopyReport:
        """Writes a tar archive: of what was changed, as a layer of an OCI image, or of all."""
        return CopyReport(**self._native.export(what, archive))

    def delete(self) -> None:
        """Removes it; ``BusyError`` if a sandbox or another snapshot lies on it."""
        self._native.delete()

    def replace(self, name: str) -> Snapshot:
        """Gives this one, which has no name, one that another may have, which is removed."""
        return Snapshot(self._native.replace(name))

    def __repr__(self) -> str:
        return f"<adl.Snapshot {self.name!r}>"


def collect_garbage(state_directory: StrOrBytesPath | None = None) -> list[str]:
    """Removes what was left on disk by who has died, and returns the names of that."""
    return _adl.collect_garbage(state_directory)


def keep_blanks(most: int) -> None:
    """Has this process keep up to ``most`` blanks, which make the next sandbox in half the time.

    A blank is an init in namespaces of its own in which nothing has run yet. A thread makes one
    after each sandbox, for the next of the same kind of network, ids, capabilities and filter;
    image, mounts, limits and name may be others. It takes a process, a range of ids and three
    descriptors, until ``keep_blanks(0)`` or the end of this process. Without this there are none,
    nor are there any for an ordinary user.
    A :class:`Pool` has whole sandboxes ready, and is faster still.
    """
    _adl.keep_blanks(most)


def blanks_ready() -> int:
    """The number of blanks that are ready now, of those that :func:`keep_blanks` keeps."""
    return _adl.blanks_ready()


def finish_removals() -> None:
    """Waits until the files of all sandboxes that this process has deleted are gone."""
    _adl.finish_removals()


def pending_removals() -> int:
    """The number of deleted sandboxes whose files this process has still to remove."""
    return _adl.pending_removals()


def wait_at_exit(limit: Seconds) -> None:
    """Sets how many seconds a normal end of this process waits for such removals; 10 at first."""
    _adl.wait_at_exit(limit)


def examine(state_directory: StrOrBytesPath | None = None) -> list[Check]:
    """Examines what this machine can do, by doing it; the same as ``adl doctor``."""
    return [Check(*check) for check in _adl.examine(state_directory)]
