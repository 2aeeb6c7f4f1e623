"""``Sandbox``: what a caller asks of it."""

from __future__ import annotations

import atexit
import socket
import subprocess
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from adl import _adl, _async
from adl._async_files import AsyncFiles
from adl._config import (
    AnyHostPath,
    Args,
    CommandOptions,
    FileOptions,
    Limits,
    SandboxOptions,
    Seconds,
    Stream,
    StrOrBytesPath,
    may_be_fetched,
    native_limits,
    native_options,
    native_stream,
)
from adl._errors import Error
from adl._files import Files
from adl._images import ImageConfig
from adl._network import (
    Address,
    ConnectionEnd,
    ConnectionLimits,
    Forward,
    Port,
    Publish,
    native_forward,
    native_publish,
    socket_of,
    watch,
)
from adl._process import Job, Popen, _seconds, check_file_options
from adl._results import Change, CompletedProcess, CopyReport, Stats
from adl._snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Sandbox"]

_living: weakref.WeakSet[Sandbox] = weakref.WeakSet()


class Sandbox:
    """A running sandbox: ``Sandbox(image=..., network=..., ...)``.

    The arguments are those of ``SandboxOptions``; the default of all of them is the programs of
    this machine, nothing of its data, no network, and every protection on. It is ready when this
    returns, in about a millisecond. As a context manager, or in ``async with``, it is deleted at
    the end; one that is dropped is deleted, too, and nothing is left of any when this process
    ends in whatever way.

    Threads may share it, and any number of commands run at once. A fork of this process can't use
    it (``ForkedProcessError``), and harms nothing by dropping it.

    Raises ``InvalidError`` and ``IoError`` for what is wrong with the arguments and their paths,
    ``UnsupportedError`` for what this machine can't give, ``SetupError`` where building failed,
    and where the image has to be fetched as ``Images.pull``.

    >>> with adl.Sandbox() as sandbox:
    ...     sandbox.run(["echo", "hello"]).stdout
    b'hello\\n'
    """

    def __init__(self, **options: Unpack[SandboxOptions]) -> None:
        self._native = _adl.Sandbox(_adl.Config(native_options(options)))
        self._files: Files | None = None
        _living.add(self)

    @classmethod
    def _of(cls, native: _adl.Sandbox) -> Self:
        """One that was made elsewhere, and is ended there."""
        this = cls.__new__(cls)
        this._native = native
        this._files = None
        return this

    @classmethod
    async def create(cls, **options: Unpack[SandboxOptions]) -> Self:
        """Makes a sandbox as the class does, from a coroutine: other tasks run meanwhile."""
        do = _async.in_own_thread if may_be_fetched(options.get("image")) else _async.in_thread
        return await do(lambda: cls(**options))

    # Commands.

    def run(
        self,
        args: Args,
        *,
        input: bytes | bytearray | memoryview | str | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        **options: Unpack[CommandOptions],
    ) -> CompletedProcess:
        """Runs a command to its end, and returns how it ended, why, and what it wrote.

        A ``str`` is a script for bash, or where the sandbox has none for sh; a sequence is a
        program with its arguments, run without a shell. It returns when the command's own process
        has ended: what that has left behind goes on.

        ``timeout``, in seconds, ends the command with all that it has started; the result has what
        it wrote, and its ``reason`` is ``EndReason.TIMED_OUT``. The sandbox goes on.

        With ``check``, ``CalledProcessError`` is raised unless it exited by itself with 0, and
        ``TimeoutExpired`` where its time was up.

        stdout and stderr are collected, unless they are a file, a descriptor, ``DEVNULL`` or, for
        stderr, ``STDOUT``: then both come in the order in which they were written. stdin is
        ``input``, a file, or nothing. The other options are those of ``CommandOptions``.

        A ``KeyboardInterrupt`` ends the command. Raises ``StartError``, which is a
        ``FileNotFoundError`` where the program or the directory is missing; ``InvalidError``;
        ``SandboxDiedError``; ``DeletedError``; ``BusyError`` where the sandbox is frozen.
        """
        native = _command_options(options, timeout, stdin, stdout, stderr)
        streams = ("stdin", "stdout", "stderr")
        if any(_is_file(native.get(name)) for name in streams):
            for name in ("stdout", "stderr"):
                if native.get(name) is None:
                    native[name] = subprocess.PIPE
            told = self._native.run_beside(args, native, input)
        else:
            if input is not None:
                native["input"] = input
            told = self._native.run(args, native)
        result = CompletedProcess._of(args, told)
        return result._check(_seconds(timeout)) if check else result

    @overload
    def popen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        text: Literal[False] = False,
        encoding: None = None,
        errors: None = None,
        bufsize: int = -1,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> Popen[bytes]: ...

    @overload
    def popen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> Popen[str]: ...

    @overload
    def popen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        text: bool = False,
        encoding: str,
        errors: str | None = None,
        bufsize: int = -1,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> Popen[str]: ...

    @overload
    def popen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        text: bool = False,
        encoding: None = None,
        errors: str,
        bufsize: int = -1,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> Popen[str]: ...

    def popen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> Popen[Any]:
        """Starts a command and returns once its program runs; see ``Popen``.

        Streams that are not said are ``/dev/null``; ``PIPE`` makes them files of the ``Popen``.
        ``terminal=(rows, columns)`` gives it a terminal of the sandbox's own instead of all three.
        """
        native = _command_options(options, timeout, stdin, stdout, stderr)
        native["terminal"] = terminal
        native["kill_on_drop"] = kill_on_drop
        check_file_options(encoding, errors, bufsize)
        child = self._native.spawn(args, native)
        try:
            return Popen(args, child, text=text, encoding=encoding, errors=errors, bufsize=bufsize)
        except BaseException:
            child.kill()
            raise

    def background(
        self,
        args: Args,
        *,
        input: bytes | bytearray | memoryview | str | None = None,
        timeout: Seconds | None = None,
        stdout: Stream = None,
        stderr: Stream = None,
        **options: Unpack[CommandOptions],
    ) -> Job:
        """Starts a command and collects what it writes, in the background; see ``Job``."""
        native = _command_options(options, timeout, None, stdout, stderr)
        if input is not None:
            native["input"] = input
        return Job(args, self._native.background(args, native))

    def jobs(self) -> list[Job]:
        """The jobs in the background that no one has waited for yet, the oldest first."""
        return [Job([job.program], job) for job in self._native.jobs()]

    def job(self, number: int) -> Job | None:
        """The job of this ``id`` among ``jobs``."""
        found = self._native.job(number)
        return None if found is None else Job([found.program], found)

    def kill_all(self) -> None:
        """Kills every process in it, and returns when they are gone. The sandbox lives on."""
        self._native.kill_all()

    # Files.

    @property
    def files(self) -> Files:
        """Reads, writes and copies its files."""
        if self._files is None:
            no_options: FileOptions = {}
            self._files = Files(self._native.files(dict(no_options)))
        return self._files

    def read_file(self, path: StrOrBytesPath) -> bytes:
        """Reads a file: see ``Files.read_bytes``."""
        return self.files.read_bytes(path)

    def write_file(self, path: StrOrBytesPath, data: bytes | bytearray | memoryview | str) -> None:
        """Writes a file; a ``str`` as UTF-8. The new file takes the place of one that is there."""
        if isinstance(data, str):
            self.files.write_text(path, data)
        else:
            self.files.write_bytes(path, data)

    def copy_in(self, src: AnyHostPath, dst: StrOrBytesPath) -> CopyReport:
        """Copies a file or a directory into it: see ``Files.copy_in``."""
        return self.files.copy_in(src, dst)

    def copy_out(self, src: StrOrBytesPath, dst: AnyHostPath) -> CopyReport:
        """Copies a file or a directory out of it: see ``Files.copy_out``."""
        return self.files.copy_out(src, dst)

    # Sockets and ports.

    def connect(self, address: Address, timeout: Seconds = 10.0) -> socket.socket:
        """Connects to a TCP server inside: ``connect("127.0.0.1:8000")``, within ``timeout``.

        127.0.0.1 and ::1 are the sandbox's own. The socket is an ordinary one of the caller's,
        without a timeout; it ends as the server does. ``SocketError`` tells the kernel's answer,
        as a ``ConnectionRefusedError`` where nothing listens; ``TimedOutError``.
        """
        return socket_of(self._native.connect(address, timeout))

    def connect_unix(self, path: StrOrBytesPath, timeout: Seconds = 10.0) -> socket.socket:
        """Connects to a Unix socket inside, by the rights of the sandbox's user; ``FileError``."""
        return socket_of(self._native.connect_unix(path, timeout))

    def listen(self, address: Address) -> socket.socket:
        """Listens for TCP connections of what runs inside: a service of the caller's, there.

        With port 0 the kernel picks one, which ``getsockname`` tells. The socket is the caller's,
        and does not end with the sandbox: to accept from it waits on. Close it then.
        """
        return socket_of(self._native.listen(address))

    def publish(
        self, address: Address, port: int, *, limits: ConnectionLimits | None = None
    ) -> Port:
        """Has a port of the host's lead to a TCP server on ``port`` inside, until it is closed.

        ``publish("127.0.0.1:0", 80).address`` is one that the kernel has picked. Whoever reaches
        it reaches the server, which may begin to listen later. ``SocketError`` where the host
        can't listen there.
        """
        return Port._of(self._native.publish(native_publish(Publish(address, port, limits))))

    def forward(
        self, port: int | Address, to: Address, *, limits: ConnectionLimits | None = None
    ) -> Port:
        """Has a port inside lead to a TCP server that the host reaches, and nowhere else.

        ``forward(5432, "db.internal:5432")``: a name is looked up here and now
        (``socket.gaierror``), and its addresses are tried in turn for each connection.
        """
        return Port._of(self._native.forward(native_forward(Forward(port, to, limits))))

    @property
    def ports(self) -> list[Port]:
        """The ports that lead into it and out of it, the oldest first."""
        return [Port._of(port) for port in self._native.ports()]

    def close_port(self, port: Port) -> None:
        """Ends a port, and resets its connections."""
        if not isinstance(port, Port):
            raise TypeError(f"port: expected Port, not {type(port).__name__}")
        self._native.close_port(port._native)

    def watch_connections(self, callback: Callable[[ConnectionEnd], object]) -> None:
        """Has a thread call ``callback`` with the end of each connection of its ports, one after
        the other, until it is deleted.

        About 200 ends are kept for a callback that is slow; the next one tells how many were not
        kept (``untold``). What it raises is for ``sys.unraisablehook``. A second callback takes
        the place of the first.
        """
        if not callable(callback):
            raise TypeError(f"callback: {type(callback).__name__} can't be called")
        watch(self._native.watch_connections(), callback)

    # Its life.

    def reset(self) -> None:
        """Makes it as new, in the time of a create, whatever was done in it.

        It has the same name and configuration, and no process and no file of before. Commands that
        run end with ``EndReason.SANDBOX_DIED``. One that has died is alive again after it.
        """
        self._native.reset()

    def snapshot(
        self, name: str | None = None, *, running: Literal["refuse", "end"] = "refuse"
    ) -> Snapshot:
        """Keeps all that it has written, for any number of others to begin with.

        It takes as long as a reset and copies nothing. The sandbox goes on with the same files.
        Where processes run in it, ``BusyError`` is raised, or with ``running="end"`` they are
        killed first. ``UnsupportedError`` with an upper in memory; ``NameInUseError``.
        """
        return Snapshot(self._native.snapshot(name, running))

    def fork(
        self, *, running: Literal["refuse", "end"] = "refuse", **options: Unpack[SandboxOptions]
    ) -> Sandbox:
        """Makes another sandbox that begins with the files of this one, by a snapshot."""
        return self.snapshot(running=running).fork(**options)

    def changes(self) -> list[Change]:
        """What it has written that differs from its image, sorted by path."""
        return [Change(*change) for change in self._native.changes()]

    def set_limits(self, limits: Limits) -> None:
        """Sets other limits, also for what runs; those that are not set are none from here on."""
        self._native.set_limits(native_limits(limits))

    def stats(self) -> Stats:
        """What all its commands have used; ``UnsupportedError`` where it has no cgroups, and has
        had no ports."""
        return Stats._of(self._native.stats())

    def freeze(self) -> None:
        """Stops all its commands where they are, until ``thaw``."""
        self._native.freeze()

    def thaw(self) -> None:
        """Lets its commands go on."""
        self._native.thaw()

    def delete(self) -> None:
        """Ends all its processes and gives back all that it had.

        What it has written to disk is removed soon after. From then on all that it is asked is
        ``DeletedError``; to delete it again is none.
        """
        self._native.delete()

    @property
    def name(self) -> str:
        """Its name."""
        return self._native.name

    @property
    def is_alive(self) -> bool:
        """Whether commands can run in it."""
        return self._native.is_alive

    @property
    def init_pid(self) -> int:
        """The process id of its init, outside: another after each reset and snapshot."""
        return self._native.init_pid

    @property
    def image_config(self) -> ImageConfig | None:
        """What its image says of commands; None if it is no image in layers."""
        says = self._native.image_config
        return None if says is None else ImageConfig(**says)

    @property
    def id_range(self) -> tuple[int, int] | None:
        """The first id outside that is its own, and their number; None where it has no range."""
        return self._native.id_range

    def pidfd(self) -> int:
        """A new descriptor that is readable when it has died or was ended. The caller closes it."""
        return self._native.pidfd()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<adl.Sandbox {self.name!r}>"

    # From coroutines.

    async def arun(
        self,
        args: Args,
        *,
        input: bytes | bytearray | memoryview | str | None = None,
        timeout: Seconds | None = None,
        check: bool = False,
        stdout: int | None = None,
        stderr: int | None = None,
        **options: Unpack[CommandOptions],
    ) -> CompletedProcess:
        """Runs a command as ``run`` does, from a coroutine, without a thread for each command.

        stdout and stderr are collected, or ``DEVNULL``, or for stderr ``STDOUT``. When the task is
        cancelled, the command is ended with all that it has started.
        """
        native = _command_options(options, timeout, None, stdout, stderr)
        if input is not None:
            native["input"] = input
        result = CompletedProcess._of(args, await _async.output(self._native, args, native))
        return result._check(_seconds(timeout)) if check else result

    async def apopen(
        self,
        args: Args,
        *,
        timeout: Seconds | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        terminal: tuple[int, int] | None = None,
        limit: int = 65536,
        kill_on_drop: bool = False,
        **options: Unpack[CommandOptions],
    ) -> _async.Process:
        """Starts a command, in the idiom of ``asyncio.subprocess``; see ``Process``.

        ``terminal=(rows, columns)`` gives it a terminal of the sandbox's own instead of all three
        streams: what is written to ``stdin`` is typed, and ``stdout`` has what it prints. ``limit``
        is how much a reader of a stream buffers, in bytes.
        """
        native = _command_options(options, timeout, stdin, stdout, stderr)
        native["terminal"] = terminal
        native["kill_on_drop"] = kill_on_drop
        if not isinstance(limit, int):
            raise TypeError(f"limit: expected int, not {type(limit).__name__}")
        if limit <= 0:
            raise ValueError(f"limit: {limit} is no number of bytes")
        return await _async.spawn(self._native, args, native, limit)

    async def aconnect(
        self, address: Address, timeout: Seconds = 10.0, *, limit: int = 65536
    ) -> _async.Streams:
        """Connects as ``connect`` does; the streams are those of ``asyncio.open_connection``."""
        return await _async.connected(lambda: self.connect(address, timeout), limit)

    async def aconnect_unix(
        self, path: StrOrBytesPath, timeout: Seconds = 10.0, *, limit: int = 65536
    ) -> _async.Streams:
        """Connects as ``connect_unix`` does, with streams as those of ``aconnect``."""
        return await _async.connected(lambda: self.connect_unix(path, timeout), limit)

    @property
    def afiles(self) -> AsyncFiles:
        """Reads, writes and copies its files, from coroutines."""
        return AsyncFiles(self.files)

    async def areset(self) -> None:
        """Does what ``reset`` does, from a coroutine."""
        await _async.in_thread(self.reset)

    async def asnapshot(
        self, name: str | None = None, *, running: Literal["refuse", "end"] = "refuse"
    ) -> Snapshot:
        """Does what ``snapshot`` does, from a coroutine."""
        return await _async.in_thread(lambda: self.snapshot(name, running=running))

    async def afork(
        self, *, running: Literal["refuse", "end"] = "refuse", **options: Unpack[SandboxOptions]
    ) -> Sandbox:
        """Does what ``fork`` does, from a coroutine."""
        return await _async.in_thread(lambda: self.fork(running=running, **options))

    async def adelete(self) -> None:
        """Does what ``delete`` does, from a coroutine."""
        await _async.in_thread(self.delete)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.adelete()


def _command_options(
    options: CommandOptions, timeout: Any, stdin: Any, stdout: Any, stderr: Any
) -> dict[str, Any]:
    """The options of a command, as the engine takes them."""
    native: dict[str, Any] = dict(options)
    if timeout is not None:
        native["timeout"] = timeout
    if stdin is None and stdout is None and stderr is None:
        return native
    for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        if stream is not None:
            try:
                native[name] = native_stream(stream)
            except TypeError as error:
                raise TypeError(f"{name}: {error}") from None
    return native


def _is_file(stream: Any) -> bool:
    """Whether a stream is one of the caller's."""
    return isinstance(stream, tuple) or (isinstance(stream, int) and stream >= 0)


def _end_all() -> None:
    """Deletes what no one has deleted, at the end of the interpreter."""
    for sandbox in list(_living):
        try:
            sandbox.delete()
        except Error:
            pass  # There is no one to tell. A fork's are its parent's.


atexit.register(_end_all)
