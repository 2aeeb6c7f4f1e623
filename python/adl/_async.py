"""The same from coroutines of asyncio, on descriptors, without a thread for each command."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import weakref
from asyncio import streams
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from adl._errors import Error
from adl._results import ExitStatus

if TYPE_CHECKING:
    from typing_extensions import Self

    from adl import _adl
    from adl._process import Scope

__all__ = [
    "Process",
    "Streams",
    "connected",
    "in_file_thread",
    "in_loop",
    "in_own_thread",
    "in_thread",
    "output",
    "spawn",
]

T = TypeVar("T")
P = TypeVar("P")

_THREADS = 4
"""How many calls that block run at once: each takes about a millisecond."""

_executors: dict[str, ThreadPoolExecutor] = {}

# A fork has none of the threads.
os.register_at_fork(after_in_child=_executors.clear)


def _submit(work: Callable[[], T], kind: str) -> Future[T]:
    executor = _executors.get(kind)
    if executor is None:
        executor = _executors[kind] = ThreadPoolExecutor(_THREADS, thread_name_prefix=kind)
    return executor.submit(work)


async def in_thread(work: Callable[[], T]) -> T:
    """Does what blocks in one of a few threads."""
    return await asyncio.wrap_future(_submit(work, "adl"))


async def in_file_thread(work: Callable[[], T]) -> T:
    """Does what may take long for much data, so that nothing waits for it but its like."""
    return await asyncio.wrap_future(_submit(work, "adl-files"))


async def _begin(work: Callable[[], T], kill: Callable[[T], object]) -> T:
    """Starts something in one of a few threads. Where no one waits any more, it is killed."""
    begun = _submit(work, "adl")

    def end(begun: Future[T]) -> None:
        if begun.exception() is None:
            try:
                kill(begun.result())
            except Error:
                pass  # Its sandbox is gone.

    try:
        return await asyncio.shield(asyncio.wrap_future(begun))
    except BaseException:
        if not begun.cancel():
            begun.add_done_callback(end)
        raise


async def in_own_thread(
    work: Callable[[], T], end: Callable[[T], object] = lambda result: None
) -> T:
    """Does what may block very long in a thread of its own, so that nothing else waits for that.

    Where no one waits any more, neither does the end of the interpreter, and the result is ended.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            if not future.done():
                future.set_exception(error)
        elif future.done():
            end(cast(T, result))
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = error
        try:
            loop.call_soon_threadsafe(tell, result, failed)
        except RuntimeError:
            # The loop is closed.
            if failed is None:
                end(cast(T, result))

    threading.Thread(target=run, name="adl-wait", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        # It may have come just before.
        if future.done() and not future.cancelled() and future.exception() is None:
            end(future.result())
        raise


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(connect: Callable[[], socket.socket], limit: int) -> Streams:
    """The streams of a socket that is connected in a thread."""
    stream = await in_own_thread(connect, socket.socket.close)
    try:
        if stream.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock=stream, limit=limit)
        return await asyncio.open_connection(sock=stream, limit=limit)
    except BaseException:
        stream.close()
        raise


def in_loop(callback: Callable[[P], object]) -> Callable[[P], object]:
    """Has a callback be called by the event loop, from whatever thread it is called."""
    loop = asyncio.get_running_loop()

    def call(argument: P) -> None:
        try:
            loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:
            pass  # The loop is closed.

    return call


class _Watch:
    """Waits for a command in an event loop: ``step`` is called when there is something to do, and
    returns what it has come to, or None and how long to wait at most."""

    def __init__(
        self, fd: int, step: Callable[[], tuple[Any, float | None]], *, is_own: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._is_own = is_own
        self._step: Callable[[], tuple[Any, float | None]] | None = step
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[Any] = self._loop.create_future()
        self._loop.add_reader(fd, self._advance)
        self._advance()

    def _advance(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.ended.done() or self._step is None:
            return
        try:
            result, most = self._step()
        except BaseException as error:
            self._let_go()
            self.ended.set_exception(error)
            # Whoever waits is told it; no one may.
            self.ended.exception()
            return
        if result is not None:
            self._let_go()
            self.ended.set_result(result)
        elif most is not None:
            self._timer = self._loop.call_later(most, self._advance)

    def _let_go(self) -> None:
        """Of the descriptor, before another gets its number; and of the command."""
        if self._fd < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        if self._is_own:
            os.close(self._fd)
        self._fd = -1
        self._step = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._let_go()
        if not self.ended.done() and not self._loop.is_closed():
            self.ended.cancel()

    def stop_from_anywhere(self) -> None:
        """Stops in the thread of the loop, as far as there is one."""
        try:
            self._loop.call_soon_threadsafe(self.stop)
        except RuntimeError:
            self.stop()  # The loop is closed.


async def output(sandbox: _adl.Sandbox, args: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Runs a command to its end."""
    pending = await _begin(lambda: sandbox.begin(args, options), lambda begun: begun.kill())
    step = pending.advance
    watch = _Watch(pending.fileno(), lambda: (step(), pending.wait_at_most()), is_own=False)
    try:
        told: tuple[Any, ...] = await asyncio.shield(watch.ended)
        return told
    except asyncio.CancelledError:
        pending.kill()
        # It is gone when the task is: in a moment.
        await asyncio.wait([watch.ended], timeout=5)
        raise
    finally:
        watch.stop()


class _WriteProtocol(streams.FlowControlMixin):
    """What a writer waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._closed.done():
            self._closed.set_result(None)

    def _get_close_waiter(self, stream: Any) -> asyncio.Future[None]:
        return self._closed


class _Descriptor:
    """A descriptor that a transport has, and that is closed once, whatever loop it is of."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.number = fd

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def __del__(self) -> None:
        # The loop, which has it while it is open, was closed.
        self.close()


class _Writing(asyncio.WriteTransport):
    """Writes to a pipe or a terminal, and reads nothing of it, as loops may do to see its end."""

    _HIGH = 65536
    """How much waits to be written before the writer has to, in bytes."""

    def __init__(self, fd: int, protocol: streams.FlowControlMixin) -> None:
        super().__init__({"pipe": fd})
        self._loop = asyncio.get_running_loop()
        self._descriptor = _Descriptor(fd)
        self._protocol = protocol
        self._waiting = bytearray()
        self._is_closing = self._is_paused = False
        self._low, self._high = self._HIGH // 4, self._HIGH

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or not data:
            return
        is_first = not self._waiting
        self._waiting += data
        if is_first:
            self._write_some()
            if self._waiting:
                self._loop.add_writer(self._descriptor.number, self._write_some)
        if len(self._waiting) > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _write_some(self) -> None:
        try:
            del self._waiting[: os.write(self._descriptor.number, self._waiting)]
        except BlockingIOError:
            return
        except OSError:
            # No one has it open any more, who could be told.
            self.abort()
            return
        if self._is_paused and len(self._waiting) <= self._low:
            self._is_paused = False
            self._protocol.resume_writing()
        if not self._waiting:
            self._loop.remove_writer(self._descriptor.number)
            if self._is_closing:
                self.abort()

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = self._HIGH if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._low, self._high = low, high

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        if not self._waiting:
            self.abort()

    def abort(self) -> None:
        self._is_closing = True
        self._waiting.clear()
        if self._descriptor.number >= 0 and not self._loop.is_closed():
            self._loop.remove_writer(self._descriptor.number)
            self._loop.call_soon(self._protocol.connection_lost, None)
        self._descriptor.close()


class _Reading(asyncio.ReadTransport):
    """Reads a pipe or a terminal."""

    _AT_ONCE = 1 << 18

    def __init__(self, fd: int, protocol: asyncio.StreamReaderProtocol) -> None:
        super().__init__({"pipe": fd})
        self._loop = asyncio.get_running_loop()
        self._descriptor = _Descriptor(fd)
        self._protocol = protocol
        self._is_closing = self._is_paused = False
        protocol.connection_made(self)
        self._loop.add_reader(fd, self._read_some)

    def _read_some(self) -> None:
        error: Exception | None = None
        try:
            data = os.read(self._descriptor.number, self._AT_ONCE)
        except BlockingIOError:
            return
        except OSError as failed:
            # That no one has a terminal open any more is its end.
            data, error = b"", None if failed.errno == errno.EIO else failed
        if data:
            self._protocol.data_received(data)
        else:
            if error is None:
                self._protocol.eof_received()
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor.number)
            self._loop.call_soon(self._protocol.connection_lost, error)
        self._descriptor.close()

    def is_reading(self) -> bool:
        return not self._is_closing and not self._is_paused

    def pause_reading(self) -> None:
        if self.is_reading():
            self._is_paused = True
            self._loop.remove_reader(self._descriptor.number)

    def resume_reading(self) -> None:
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            self._loop.add_reader(self._descriptor.number, self._read_some)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._end(None)


class Process:
    """A command that runs, in the idiom of ``asyncio.subprocess.Process``.

    Made by ``Sandbox.apopen``. In ``async with`` it is ended at the end of the block, with all
    that it has started.
    """

    args: Any
    """The command, as it was given."""
    stdin: asyncio.StreamWriter | None
    """Its stdin, if that was ``PIPE``; what is typed, if it has a terminal."""
    stdout: asyncio.StreamReader | None
    """Its stdout, if that was ``PIPE``: ``async for line in process.stdout``; all that is printed,
    if it has a terminal."""
    stderr: asyncio.StreamReader | None
    """Its stderr, if that was ``PIPE``."""
    status: ExitStatus | None
    """How it has ended, once that was told."""

    def __init__(self, args: Any, native: _adl.Child, limit: int) -> None:
        self.args = args
        self._native = native
        self.status = None
        self.stdin = self.stdout = self.stderr = None
        self._transports: list[asyncio.BaseTransport] = []
        this = weakref.ref(self)
        self._watch = _Watch(native.watch(), lambda: _look(native, this), is_own=True)
        # One that is dropped runs on, and the loop forgets it.
        weakref.finalize(self, self._watch.stop_from_anywhere).atexit = False
        stdin, stdout, stderr, terminal = native.take()
        if terminal is not None:
            stdout = terminal
            try:
                stdin = os.dup(terminal)
            except OSError:
                os.close(terminal)
                raise
        if stdin is not None:
            protocol = _WriteProtocol()
            writing = _Writing(stdin, protocol)
            loop = asyncio.get_running_loop()
            self.stdin = asyncio.StreamWriter(writing, protocol, None, loop)
            self._transports.append(writing)
        self.stdout, self.stderr = self._reader(stdout, limit), self._reader(stderr, limit)

    def _reader(self, fd: int | None, limit: int) -> asyncio.StreamReader | None:
        if fd is None:
            return None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        self._transports.append(_Reading(fd, protocol))
        return reader

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self._native.pid

    @property
    def returncode(self) -> int | None:
        """What it has exited with, -N for signal N; None while it runs."""
        return None if self.status is None else self.status.returncode

    async def wait(self) -> int:
        """Waits for its end, and returns its ``returncode``."""
        status: ExitStatus = await asyncio.shield(self._watch.ended)
        return status.returncode

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Writes to its stdin, reads its streams to their ends, and waits for its own.

        A process that it leaves behind may keep a stream open: ``Sandbox.arun`` does not wait for
        that.
        """

        async def feed() -> None:
            if self.stdin is not None:
                try:
                    if input is not None:
                        self.stdin.write(input)
                        await self.stdin.drain()
                except (BrokenPipeError, ConnectionResetError):
                    pass  # It does not want it.
                self.stdin.close()

        async def read(stream: asyncio.StreamReader | None) -> bytes | None:
            return None if stream is None else await stream.read()

        if input is not None and self.stdin is None:
            raise ValueError("input: stdin is no pipe: say stdin=PIPE")
        _, out, err = await asyncio.gather(feed(), read(self.stdout), read(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, sig: int, scope: Scope = "process") -> None:
        """Sends a signal: to its process, its process group, or all that it has started."""
        self._native.send_signal(sig, scope)

    def terminate(self) -> None:
        """Sends SIGTERM to its process."""
        self._native.send_signal(15, "process")

    def kill(self) -> None:
        """Kills it, and all that it ever started."""
        self._native.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Sets the size of its terminal, in characters. Foreground processes get SIGWINCH."""
        self._native.resize(rows, columns)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.status is None:
                self.kill()
                await self.wait()
        finally:
            for transport in self._transports:
                transport.close()

    def __repr__(self) -> str:
        return f"<adl.Process pid={self.pid} returncode={self.returncode} args={self.args!r}>"


def _look(native: _adl.Child, this: weakref.ref[Process]) -> tuple[Any, float | None]:
    """How a command has ended. What is overdue to end is told without a descriptor."""
    told = native.poll()
    if told is None:
        return None, 1.0
    status = ExitStatus._of(told)
    process = this()
    if process is not None:
        process.status = status
    return status, None


async def spawn(sandbox: _adl.Sandbox, args: Any, options: dict[str, Any], limit: int) -> Process:
    """Starts a command."""
    native = await _begin(lambda: sandbox.spawn(args, options), lambda child: child.kill())
    try:
        return Process(args, native, limit)
    except BaseException:
        native.kill()
        raise
