"""What goes wrong, as exceptions."""

from __future__ import annotations

import errno as _errno
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adl._results import CompletedProcess, ExitStatus

__all__ = [
    "BusyError",
    "CalledProcessError",
    "DeletedError",
    "Error",
    "FileError",
    "ForkedProcessError",
    "InvalidError",
    "IoError",
    "NameInUseError",
    "NoImageError",
    "NoSnapshotError",
    "NotRegularError",
    "PoolClosedError",
    "PoolError",
    "PrepareError",
    "ProtocolError",
    "PullError",
    "RefusedError",
    "SandboxDiedError",
    "SetupError",
    "SocketError",
    "StartError",
    "TimedOutError",
    "TimeoutExpired",
    "TooLargeError",
    "UncollectedError",
    "UndeliveredError",
    "UnsupportedError",
]


class Error(Exception):
    """Why something was not done; the base of all exceptions of adl's own.

    Its text says what was tried, what happened, and where possible what to do. ``kind`` says
    whose turn it is: ``"invalid"`` (change the call), ``"unsupported"`` (this machine can't give
    it; the error says what an administrator can do), ``"temporary"`` (the same call may succeed
    later), ``"died"`` (the sandbox has died or was reset meanwhile: look at
    ``Sandbox.is_alive``), ``"inside"`` (it failed by the rights, files and programs inside: tell
    whoever asked for it), ``"violation"`` (don't trust what is inside) or ``"host"`` (tell an
    administrator).
    """

    kind: str = "host"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self._fields = fields
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (_name_of(type(self)), str(self), self.kind, self._fields)


class _KernelError(Error, OSError):
    """An answer of the kernel's: an ``OSError`` with its ``errno``."""

    def __init__(self, message: str, *, errno: int | None, strerror: str, **fields: Any) -> None:
        OSError.__init__(self, message)
        self._fields = {"errno": errno, "strerror": strerror, **fields}
        self.__dict__.update(fields)
        self.errno = errno
        self.strerror = strerror


class InvalidError(Error, ValueError):
    """What was asked for makes no sense, here or anywhere; nothing was started."""

    what: str
    """The option or argument."""
    why: str
    """What is wrong with it."""


class UnsupportedError(Error):
    """This machine, or this user, can't give what was asked for."""

    what: str
    """What was asked for."""
    why: str
    """What stands in the way."""
    fix: str
    """What an administrator or the caller can do about it."""


class SetupError(_KernelError):
    """A step of building the sandbox failed; all of it is undone."""

    step: str
    """The step, such as ``"overlay"``."""
    path: str
    """What it was done to, empty if the step says it all. Bytes from inside."""


class StartError(_KernelError):
    """A command was not started; the sandbox and its other commands are as before.

    Where the program is missing this is a ``FileNotFoundError``, too, and where it may not be run
    a ``PermissionError``.
    """

    program: str
    """What was to be run; the user or the directory, where that is what is wrong."""
    stage: str
    """How far it came: ``"directory"`` or ``"exec"``, for example."""


class SocketError(_KernelError):
    """A TCP socket could not be had: of the sandbox, or of the host for a port that leads into it.

    By its ``errno`` it is also one of Python's own: ``ConnectionRefusedError``,
    ``PermissionError``.
    """

    operation: str
    """What was to be done, as ``"connect to"``."""
    address: tuple[str, int]
    """The address."""


class FileError(_KernelError):
    """Something could not be done with a file of the sandbox.

    By its ``errno`` it is also one of Python's own: ``FileNotFoundError``, ``PermissionError``,
    ``FileExistsError``, ``IsADirectoryError``, ``NotADirectoryError``.
    """

    operation: str
    """What was to be done."""
    path: str
    """The file, as it was named, or one below it. It may hold bytes that a guest chose."""


class NotRegularError(Error, OSError):
    """In place of a regular file there is a FIFO, a socket, a device or a file of ``/proc``."""

    path: str
    """The path, as it was named."""


class TooLargeError(Error):
    """There is more than the call may move or tell."""

    what: str
    """What there is too much of, with its unit."""
    limit: int
    """The limit."""


class RefusedError(Error):
    """What came out of the sandbox would have harmed the host: nothing was made of it."""

    why: str
    """What was wrong."""


class SandboxDiedError(Error):
    """The sandbox has died, or was reset, or made into a snapshot, meanwhile."""


class DeletedError(Error, ValueError):
    """The sandbox was deleted."""


class NameInUseError(Error, ValueError):
    """A sandbox, or a snapshot, of this name exists."""

    name: str
    """The name."""


class NoSnapshotError(Error, LookupError):
    """There is no snapshot of this name."""

    name: str
    """The name."""


class NoImageError(Error, LookupError):
    """There is no image of this name in the state directory."""

    name: str
    """The name, or a digest."""


class PullError(Error):
    """There is no image of this name in the state directory, and none could be fetched."""

    image: str
    """The whole name of the image: the registry, where it is looked for, comes first."""
    program: str
    """What was to fetch it."""
    why: str
    """What that says."""


class PoolClosedError(Error, ValueError):
    """The pool was closed."""


class PoolError(Error):
    """A pool could not make a sandbox. It goes on trying, with pauses between."""

    why: Error
    """What went wrong the last time."""


class PrepareError(Error):
    """What prepares or checks the sandboxes of a pool has refused a new one, or has raised. The
    sandbox was deleted."""

    why: BaseException
    """What it has raised."""


class ForkedProcessError(Error, RuntimeError):
    """It belongs to another process, of which this one is a fork; nothing was done."""

    what: str
    """What the other process has made."""


class BusyError(Error):
    """It is used by something else; nothing was done."""

    what: str
    """What can't be had, or removed."""
    by: str
    """Who has it."""


class TimedOutError(Error, TimeoutError):
    """The other side did not answer in time. A command whose time is up is not this."""

    what: str
    """What was waited for."""
    after: float
    """How long, in seconds."""


class UndeliveredError(Error):
    """A command has ended, but a stream of the caller's did not take all that it wrote."""

    status: ExitStatus
    """How the command ended."""
    why: Error
    """What happened to the stream."""


class ProtocolError(Error):
    """The init of the sandbox broke the protocol: don't trust what is inside."""

    why: str
    """What was wrong."""


class UncollectedError(Error):
    """Some of what was left behind could not be removed; the rest was."""

    removed: list[str]
    """The names of what was removed."""
    errors: list[Error]
    """What was not, each with its path."""


class IoError(_KernelError):
    """An operation on the host failed."""

    operation: str
    """The operation, as a system call or in words."""
    path: str
    """What it was done to, empty if nothing has a name."""


class CalledProcessError(Error, subprocess.CalledProcessError):
    """A command with ``check=True`` did not succeed."""

    kind = "inside"
    result: CompletedProcess
    """How it ended, and what it wrote."""

    def __init__(self, result: CompletedProcess) -> None:
        subprocess.CalledProcessError.__init__(
            self, result.returncode, result.args, result.stdout, result.stderr
        )
        self.result = result

    def __str__(self) -> str:
        return f"the command {self.cmd!r} {self.result.status}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result,)


class TimeoutExpired(Error, subprocess.TimeoutExpired):
    """The time of a command, or of a wait for one, was up.

    ``stdout`` and ``stderr`` are what it had written by then, as far as that was collected.
    """

    kind = "inside"
    result: CompletedProcess | None
    """How the command ended; None if only the wait for it has."""

    def __init__(
        self,
        cmd: Any,
        timeout: float,
        output: bytes | None = None,
        stderr: bytes | None = None,
        result: CompletedProcess | None = None,
    ) -> None:
        subprocess.TimeoutExpired.__init__(self, cmd, timeout, output, stderr)
        self.result = result

    def __str__(self) -> str:
        return f"the command {self.cmd!r} timed out after {self.timeout} seconds"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr, self.result)


_BUILTIN: dict[int, type[OSError]] = {
    _errno.ENOENT: FileNotFoundError,
    _errno.EEXIST: FileExistsError,
    _errno.EACCES: PermissionError,
    _errno.EPERM: PermissionError,
    _errno.EISDIR: IsADirectoryError,
    _errno.ENOTDIR: NotADirectoryError,
    _errno.EAGAIN: BlockingIOError,
    _errno.ECONNREFUSED: ConnectionRefusedError,
    _errno.ECONNRESET: ConnectionResetError,
}

_also: dict[tuple[str, type[OSError]], type[Error]] = {}


def _name_of(cls: type[Error]) -> str:
    """The name of the class of this module that it is, or is made of."""
    return cls.__name__


def _class_of(name: str, fields: dict[str, Any]) -> type[Error]:
    """The class of this name that is also Python's own for the number of the error."""
    cls: type[Error] = globals()[name]
    builtin = _BUILTIN.get(fields.get("errno") or 0)
    if builtin is None or not issubclass(cls, _KernelError):
        return cls
    found = _also.get((name, builtin))
    if found is None:
        namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        found = _also[name, builtin] = type(name, (cls, builtin), namespace)
    return found


def _make(name: str, message: str, kind: str, fields: dict[str, Any]) -> Error:
    """Makes an exception of what the engine tells, or of what was pickled."""
    if name == "UndeliveredError" and isinstance(fields["status"], tuple):
        from adl._results import ExitStatus

        fields["status"] = ExitStatus._of(fields["status"])
    error = _class_of(name, fields)(message, **fields)
    error.kind = kind
    return error


for _name in __all__:
    globals()[_name].__module__ = "adl"
