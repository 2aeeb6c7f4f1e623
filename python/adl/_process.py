"""Commands that run beside the caller."""

from __future__ import annotations

import codecs
import errno
import io
import operator
import os
import selectors
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, AnyStr, Generic, Literal

from adl._adl import Cursor
from adl._errors import TimeoutExpired
from adl._results import CompletedProcess, ExitStatus, PartialOutput, Stats

if TYPE_CHECKING:
    from adl import _adl

__all__ = ["Job", "Popen", "Terminal"]

Scope = Literal["process", "group", "tree"]
_CHUNK = 65536


def check_file_options(encoding: str | None, errors: str | None, bufsize: int) -> None:
    """Raises what making the files of a command would, before there is one."""
    codecs.lookup(encoding or "utf-8")
    codecs.lookup_error(errors or "strict")
    # There are encodings that are none of text.
    io.TextIOWrapper(io.BytesIO(), encoding or "utf-8").close()
    operator.index(bufsize)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    total = getattr(timeout, "total_seconds", None)
    return float(total() if total is not None else timeout)


class Terminal(io.RawIOBase):
    """The host's side of the terminal that a command runs on, as a binary file.

    What is written is typed; what is read is what the command prints, and bytes from inside: to
    show them on a real terminal is to let a guest send it escapes. Reading ends when no process
    has it open.
    """

    def __init__(self, fd: int, child: _adl.Child) -> None:
        self._file = io.FileIO(fd, "r+")
        self._child = child

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            if error.errno == errno.EIO:
                return 0
            raise

    def write(self, data: Any) -> int | None:
        """Types something."""
        return self._file.write(data)

    def resize(self, rows: int, columns: int) -> None:
        """Sets its size, in characters. Foreground processes get SIGWINCH."""
        self._child.resize(rows, columns)

    def close(self) -> None:
        """Hangs up: what runs on it gets SIGHUP."""
        if not self.closed:
            # Another descriptor of it is there to set its size.
            self._child.close_terminal()
        self._file.close()
        super().close()


class _Communication:
    """What ``communicate`` has written and read until its time was up."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        """What is to be written yet."""
        self.parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}

    def collected(self, name: str) -> bytes:
        return b"".join(self.parts[name])


class Popen(Generic[AnyStr]):
    """A command that runs, in the idiom of ``subprocess.Popen``. Made by ``Sandbox.popen``.

    As a context manager it closes its streams and waits for the end. One that is dropped runs on,
    and the sandbox reaps it.
    """

    args: Any
    """The command, as it was given."""
    pid: int
    """Its process id inside the sandbox. Outside, the same number is another process."""
    stdin: IO[AnyStr] | None
    """The write end of its stdin, if that was ``PIPE``."""
    stdout: IO[AnyStr] | None
    """The read end of its stdout, if that was ``PIPE``."""
    stderr: IO[AnyStr] | None
    """The read end of its stderr, if that was ``PIPE``."""
    terminal: Terminal | None
    """Its terminal, if it was given one."""
    status: ExitStatus | None
    """How it has ended, once ``poll`` or ``wait`` has told so."""

    def __init__(
        self,
        args: Any,
        native: _adl.Child,
        *,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
    ) -> None:
        self.args = args
        self._native = native
        self.pid = native.pid
        self.status = None
        # Whether streams of the caller's have taken all that it wrote.
        self._is_delivered = False
        self._text = (encoding, errors) if text or encoding or errors else None
        self._communication: _Communication | None = None
        stdin, stdout, stderr, terminal = native.take()
        self.terminal = None if terminal is None else Terminal(terminal, native)
        self.stdin = self._file(stdin, "wb", bufsize)
        self.stdout = self._file(stdout, "rb", bufsize)
        self.stderr = self._file(stderr, "rb", bufsize)

    def _file(self, fd: int | None, mode: str, bufsize: int) -> Any:
        if fd is None:
            return None
        is_line_buffered = bufsize == 1 and self._text is not None
        file = os.fdopen(fd, mode, -1 if bufsize == 1 else bufsize)
        if self._text is None:
            return file
        encoding, errors = self._text
        return io.TextIOWrapper(
            file,
            encoding or "utf-8",
            errors,
            line_buffering=is_line_buffered,
            write_through=bufsize == 0,
        )

    @property
    def returncode(self) -> int | None:
        """What it has exited with, -N for signal N; None before ``poll`` or ``wait`` told so."""
        return None if self.status is None else self.status.returncode

    def poll(self) -> int | None:
        """Looks whether it has ended, and returns its ``returncode`` then."""
        if self.status is None:
            told = self._native.poll()
            if told is not None:
                self.status = ExitStatus._of(told)
        return self.returncode

    def wait(self, timeout: Any = None) -> int:
        """Waits for its end, and returns its ``returncode``.

        Raises ``TimeoutExpired`` if it goes on after ``timeout`` seconds; it runs on then. A
        ``KeyboardInterrupt`` ends the wait, and not the command.
        """
        if self.status is None or not self._is_delivered:
            told = self._native.wait(timeout)
            if told is None:
                raise TimeoutExpired(self.args, _seconds(timeout) or 0.0)
            self.status = ExitStatus._of(told)
            self._is_delivered = True
        return self.status.returncode

    def communicate(self, input: Any = None, timeout: Any = None) -> tuple[Any, Any]:
        """Writes ``input`` to its stdin, reads what it writes until its end, and returns that.

        On a terminal, ``input`` is typed, and what is printed comes as that of stdout. What
        processes that it leaves behind go on to write is not waited for. Raises
        ``TimeoutExpired``, with what was read, if it goes on after ``timeout`` seconds; it runs on
        then, and another ``communicate``, without ``input``, goes on where this one was.
        """
        stdin: Any = self.stdin if self.terminal is None else self.terminal
        so_far = self._communication
        if input is not None and stdin is None:
            raise ValueError("input: stdin is no pipe: say stdin=PIPE")
        if input and so_far is not None:
            raise ValueError("input: the one before, whose time was up, is still being written")
        sources: dict[str, Any] = {
            "stdout": self.stdout if self.terminal is None else self.terminal,
            "stderr": self.stderr,
        }
        open_sources = {
            name: file for name, file in sources.items() if file is not None and not file.closed
        }
        if so_far is None:
            so_far = _Communication(memoryview(self._encode(input) if input else b""))
            self._communication = so_far
            self._flush_stdin()
            for name, file in open_sources.items():
                so_far.parts[name].extend(self._buffered(file))
        limit = _seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        watch = self._native.watch()
        feed = -1
        try:
            with selectors.DefaultSelector() as selector:
                if so_far.data:
                    # A terminal is registered to be read: this is the same by another number.
                    feed = os.dup(stdin.fileno())
                    os.set_blocking(feed, False)
                    selector.register(feed, selectors.EVENT_WRITE, "stdin")
                else:
                    self._close_stdin()
                for name, file in open_sources.items():
                    os.set_blocking(file.fileno(), False)
                    selector.register(file, selectors.EVENT_READ, name)
                selector.register(watch, selectors.EVENT_READ, "end")
                while self.poll() is None:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        out, err = (so_far.collected(name) for name in ("stdout", "stderr"))
                        raise TimeoutExpired(self.args, limit or 0.0, out, err)
                    # What is overdue to end is told without a descriptor.
                    for key, _ in selector.select(1.0 if left is None else min(left, 1.0)):
                        if key.data == "stdin":
                            so_far.data = self._feed(key.fd, so_far.data)
                            if not so_far.data:
                                selector.unregister(key.fd)
                                os.close(key.fd)
                                feed = -1
                                self._close_stdin()
                        elif key.data != "end" and not self._drain(
                            key.fd, so_far.parts[key.data], once=True
                        ):
                            selector.unregister(key.fileobj)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self.wait(left)
            except TimeoutExpired:
                out, err = (so_far.collected(name) for name in ("stdout", "stderr"))
                raise TimeoutExpired(self.args, limit or 0.0, out, err) from None
        finally:
            os.close(watch)
            if feed >= 0:
                os.close(feed)
            if self.status is None or not self._is_delivered:
                # They are the caller's again.
                for file in open_sources.values():
                    os.set_blocking(file.fileno(), True)
        self._close_stdin()
        if self.terminal is not None and not self.terminal.closed:
            self._read_rest_of_terminal(so_far.parts["stdout"])
        for name, file in open_sources.items():
            self._drain(file.fileno(), so_far.parts[name], once=False)
            file.close()
        collected = [
            None if file is None else self._decode(so_far.collected(name))
            for name, file in sources.items()
        ]
        return collected[0], collected[1]

    @staticmethod
    def _buffered(file: Any) -> Iterator[bytes]:
        """What was read ahead of a file, by the caller's own calls."""
        buffer = getattr(file, "buffer", file)
        if isinstance(buffer, io.BufferedReader):
            os.set_blocking(file.fileno(), False)
            ahead = buffer.peek()
            if ahead:
                yield buffer.read(len(ahead))

    def _read_rest_of_terminal(self, parts: list[bytes]) -> None:
        """Reads until no one has it open or nothing comes: the kernel hands on what was printed in
        the background."""
        assert self.terminal is not None
        end = time.monotonic() + 0.1
        with selectors.DefaultSelector() as selector:
            selector.register(self.terminal, selectors.EVENT_READ)
            while time.monotonic() < end and selector.select(0.02):
                if not self._drain(self.terminal.fileno(), parts, once=True):
                    return

    def _encode(self, data: Any) -> bytes:
        if isinstance(data, str):
            encoding, errors = self._text or (None, None)
            return data.encode(encoding or "utf-8", errors or "strict")
        # Not a number, of which bytes makes so many zeros.
        return bytes(memoryview(data))

    def _decode(self, data: bytes) -> Any:
        if self._text is None:
            return data
        encoding, errors = self._text
        text = data.decode(encoding or "utf-8", errors or "strict")
        # As a file that is text has it.
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _flush_stdin(self) -> None:
        if self.stdin is not None and not self.stdin.closed:
            try:
                self.stdin.flush()
            except BrokenPipeError:
                pass  # It does not want it.

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except BrokenPipeError:
                pass

    @staticmethod
    def _feed(fd: int, data: memoryview) -> memoryview:
        """Writes some, and returns the rest. What no one reads is no error."""
        try:
            return data[os.write(fd, data[:_CHUNK]) :]
        except BlockingIOError:
            return data
        except (BrokenPipeError, OSError):
            return data[:0]

    @staticmethod
    def _drain(fd: int, parts: list[bytes], *, once: bool) -> bool:
        """Reads what is there; whether there may be more."""
        most = 1 << 26
        while most > 0:
            try:
                read = os.read(fd, _CHUNK)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # A terminal that no one has open.
                return False
            if not read:
                return False
            parts.append(read)
            most -= len(read)
            if once:
                return True
        return True

    def send_signal(self, sig: int, scope: Scope = "process") -> None:
        """Sends a signal: to its process, its process group, or all that it has started."""
        self._native.send_signal(sig, scope)

    def terminate(self) -> None:
        """Sends SIGTERM to its process."""
        self._native.send_signal(15, "process")

    def kill(self) -> None:
        """Kills it, and all that it ever started, whatever sessions that has moved to."""
        self._native.kill()

    def stats(self) -> Stats:
        """What it has used by now; ``UnsupportedError`` where its sandbox has no cgroups."""
        return Stats._of(self._native.stats())

    def __enter__(self) -> Popen[AnyStr]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_stdin()
        for file in (self.stdout, self.stderr, self.terminal):
            if file is not None:
                file.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill()
        self.wait()

    def __repr__(self) -> str:
        return f"<adl.Popen pid={self.pid} returncode={self.returncode} args={self.args!r}>"


class Job:
    """A command in the background, whose output is collected. Made by ``Sandbox.background``.

    It runs on when this is dropped, and stays in ``Sandbox.jobs`` until someone has waited for
    its end.
    """

    __slots__ = ("_native", "args")

    args: Any
    """The command, as it was given."""

    def __init__(self, args: Any, native: _adl.Job) -> None:
        self.args = args
        self._native = native

    @property
    def id(self) -> int:
        """Its number, by which ``Sandbox.job`` finds it."""
        return self._native.id

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self._native.pid

    def fileno(self) -> int:
        """A descriptor that is readable when it has ended, for ``select`` and event loops."""
        return self._native.fileno()

    def poll(self) -> ExitStatus | None:
        """Looks whether it has ended, and how."""
        told = self._native.poll()
        return None if told is None else ExitStatus._of(told)

    def wait(self, timeout: Any = None) -> CompletedProcess:
        """Waits for its end; ``TimeoutExpired`` if it goes on after ``timeout`` seconds."""
        told = self._native.wait(timeout)
        if told is None:
            out = self.output()
            raise TimeoutExpired(self.args, _seconds(timeout) or 0.0, out.stdout, out.stderr)
        return CompletedProcess._of(self.args, told)

    def output(self) -> PartialOutput:
        """What it has written so far, as far as that is kept."""
        return PartialOutput(*self._native.output_since(Cursor())[:4])

    def stream(self) -> Iterator[PartialOutput]:
        """What it writes, part by part, as it comes, from the beginning to its end."""
        cursor = Cursor()
        while self._native.wait_output(cursor, None):
            out, err, out_dropped, err_dropped, cursor = self._native.output_since(cursor)
            yield PartialOutput(out, err, out_dropped, err_dropped)

    def send_signal(self, sig: int, scope: Scope = "process") -> None:
        """Sends a signal: to its process, its process group, or all that it has started."""
        self._native.send_signal(sig, scope)

    def kill(self) -> None:
        """Kills it, and all that it ever started."""
        self._native.kill()

    def stats(self) -> Stats:
        """What it has used by now; ``UnsupportedError`` where its sandbox has no cgroups."""
        return Stats._of(self._native.stats())

    def __repr__(self) -> str:
        return f"<adl.Job {self.id} pid={self.pid} args={self.args!r}>"
