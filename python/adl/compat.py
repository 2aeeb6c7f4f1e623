"""The interface of agentdocker-lite 0.0.1 on this engine: change one import.

>>> from adl.compat import Sandbox, SandboxConfig
>>> sandbox = Sandbox(SandboxConfig(image="/srv/rootfs", working_dir="/workspace"), name="one")
>>> output, exit_code = sandbox.run("echo hello")
>>> sandbox.reset()
>>> sandbox.delete()

What is as there: names, arguments, results, defaults. What is better: commands end with all that
they have started, files are read and written inside the sandbox, so that no link of a guest's
leads the host anywhere, and nothing is mounted on the host. What is not there: the shell that
lives from one command to the next, of which agentdocker-lite kept no state either.

Without root it works, too: as the one user that there is inside then.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import select
import stat
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import adl
from adl._sandbox import Sandbox as _Sandbox

__all__ = ["Sandbox", "SandboxConfig"]

T = TypeVar("T")

logger = logging.getLogger("adl.compat")

_TIMED_OUT = 124
"""The exit code of a command whose time was up, as that of ``timeout(1)``."""


@dataclass
class SandboxConfig:
    """How a sandbox is made."""

    image: str = ""
    """A directory with a root file system; an archive, or a directory with an image in layers; the
    name of an image, which is fetched where it is not there: as ``debian:12``; or ``host``."""
    working_dir: str = "/"
    """Where commands start; made when one starts and it is missing."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of commands."""
    volumes: list[str] = field(default_factory=list)
    """``HOST:CONTAINER``, with ``:ro``, ``:rw`` (the default) or ``:cow``."""
    fs_backend: str = "overlayfs"
    """``overlayfs`` or ``btrfs``."""
    env_base_dir: str = "/tmp/agentdocker_lite"
    """Where sandboxes keep what must be on disk, in a directory ``adl`` of their own. Left as it
    is, that is where adl keeps it by default."""
    rootfs_cache_dir: str = "/tmp/agentdocker_lite_rootfs_cache"
    """Where agentdocker-lite has prepared images: a directory there of the name that it gives an
    image is taken in place of fetching that."""
    cpu_max: str | None = None
    """CPU time as ``QUOTA PERIOD`` in microseconds, such as ``50000 100000``; ``max`` is none."""
    memory_max: str | None = None
    """Memory in bytes, also with K, M, G or T; ``max`` is none."""
    pids_max: str | None = None
    """Processes and threads; ``max`` is none."""
    tty: bool = False
    """Commands see a terminal, and can be written to by ``write_stdin``."""
    net_isolate: bool = False
    """A network of its own with a loopback device; by default the host's."""


class Sandbox:
    """A sandbox, made at once.

    Raises ``ValueError`` without an image or for an unknown backend, ``FileNotFoundError`` for a
    path at which nothing is, and ``RuntimeError`` for an image that can't be fetched.
    """

    SUPPORTED_FS_BACKENDS = ("overlayfs", "btrfs")

    def __init__(self, config: SandboxConfig, name: str = "default") -> None:
        if not config.image:
            raise ValueError("SandboxConfig.image is required: a directory with a root file system")
        if config.fs_backend not in self.SUPPORTED_FS_BACKENDS:
            known = " or ".join(self.SUPPORTED_FS_BACKENDS)
            raise ValueError(f"fs_backend {config.fs_backend!r} is not supported: takes {known}")
        begin = time.monotonic()
        self._config = config
        self._name = name
        self._jobs: dict[str, adl.Job] = {}
        # Why those in the background are not there that could not be started.
        self._not_started: dict[str, str] = {}
        # Of one terminal at a time: what is typed goes to the command that runs.
        self._terminals = threading.Lock()
        self._typed = _Typed()
        try:
            self._sandbox = _Sandbox(**_options(config, name))
        except adl.PullError as error:
            raise RuntimeError(str(error)) from error
        try:
            self._make_working_dir()
        except BaseException:
            self._sandbox.delete()
            raise
        logger.info(
            "sandbox %s is ready after %.1f ms (%s)",
            name,
            (time.monotonic() - begin) * 1000,
            config.fs_backend,
        )

    def _make_working_dir(self) -> None:
        if self._config.working_dir not in ("", "/"):
            self._sandbox.files.makedirs(self._config.working_dir)

    def _start(self, start: Callable[[], T]) -> T:
        """Starts a command, in the directory that a reset, or a command, may have removed."""
        try:
            return start()
        except adl.StartError as error:
            if error.stage != "directory":
                raise
            self._make_working_dir()
            return start()

    def run(self, command: str | Sequence[str], timeout: float | None = None) -> tuple[str, int]:
        """Runs a command: a str by bash, or sh where there is none; a list as it is.

        Returns its output, stdout and stderr in the order in which they were written, and its
        exit code, for signal N 128 + N. When its time is up, what it wrote is followed by a line
        that says so, and the exit code is 124; the sandbox goes on. Bytes that are not UTF-8 are
        shown as ``\\xNN``.
        """
        begin = time.monotonic()
        # As there, 0 is no limit either.
        timeout = timeout or None
        try:
            if self._config.tty:
                output, status = self._run_on_terminal(command, timeout)
            else:
                result = self._start(
                    lambda: self._sandbox.run(
                        _args(command), stderr=adl.STDOUT, timeout=timeout, keep_output=_ALL
                    )
                )
                output, status = result.stdout, result.status
        except adl.StartError as error:
            # What a shell says and returns.
            return f"{error}\n", 126 if isinstance(error, PermissionError) else 127
        text = _text(output)
        code = status.returncode if status.returncode >= 0 else 128 - status.returncode
        if status.reason is adl.EndReason.TIMED_OUT:
            if text and not text.endswith("\n"):
                text += "\n"
            text += f"Command timed out after {timeout} seconds"
            code = _TIMED_OUT
        logger.debug(
            "command (%.1f ms, exit code %d): %.200s",
            (time.monotonic() - begin) * 1000,
            code,
            command,
        )
        return text, code

    def _run_on_terminal(
        self, command: str | Sequence[str], timeout: float | None
    ) -> tuple[bytes, adl.ExitStatus]:
        with self._terminals:
            child = self._start(
                lambda: self._sandbox.popen(_args(command), terminal=(24, 80), timeout=timeout)
            )
            terminal = child.terminal
            assert terminal is not None
            try:
                _echo_nothing(terminal)
                with self._typed.on(terminal):
                    output, _ = child.communicate()
            except BaseException:
                child.kill()
                child.wait()
                raise
            finally:
                terminal.close()
            assert child.status is not None
            return output, child.status

    def write_stdin(self, data: str | bytes) -> None:
        """Types something, for the command that runs or, before one does, for the next.

        Raises ``RuntimeError`` without ``tty=True``.
        """
        if not self._config.tty:
            raise RuntimeError("write_stdin needs a terminal: SandboxConfig(tty=True)")
        self._typed.add(data.encode() if isinstance(data, str) else bytes(data))

    def run_background(self, command: str | Sequence[str]) -> str:
        """Starts a command, and returns a handle of it. ``run`` works meanwhile. Why it could not
        be started is its output."""
        try:
            job = self._start(
                lambda: self._sandbox.background(
                    _args(command), stderr=adl.STDOUT, keep_output=_ALL
                )
            )
        except adl.StartError as error:
            handle = f"n{next(_numbers):07x}"
            self._not_started[handle] = f"{error}\n"
            return handle
        handle = f"{job.id:08x}"
        self._jobs[handle] = job
        return handle

    def check_background(self, handle: str) -> tuple[str, bool]:
        """What it has written so far, and whether it runs. An unknown handle is ``("", False)``."""
        job = self._jobs.get(handle)
        if job is None:
            return self._not_started.get(handle, ""), False
        running = job.poll() is None
        return _text(job.output().stdout), running

    def stop_background(self, handle: str) -> str:
        """Ends it with all that it has started, and returns all that it wrote."""
        job = self._jobs.pop(handle, None)
        if job is None:
            return self._not_started.pop(handle, "")
        if job.poll() is None:
            job.kill()
        return _text(job.wait().stdout)

    def copy_to(self, local_path: str, container_path: str) -> None:
        """Copies a file or a directory of the host into the sandbox; directories are made."""
        target = self._with_parents(container_path)
        if not os.path.exists(local_path):
            raise FileNotFoundError(f"{local_path} does not exist")
        if not os.path.isdir(local_path) and self._is_directory(target):
            target = os.path.join(target, os.path.basename(local_path))
        self._sandbox.copy_in(local_path, target)

    def copy_from(self, container_path: str, local_path: str) -> None:
        """Copies a file or a directory out of the sandbox; directories are made."""
        if not self._sandbox.files.exists(_absolute(container_path)):
            raise FileNotFoundError(f"{container_path} is not in the sandbox")
        os.makedirs(os.path.dirname(os.path.abspath(local_path)), exist_ok=True)
        source = _absolute(container_path)
        if os.path.isdir(local_path) and not self._is_directory(source):
            local_path = os.path.join(local_path, os.path.basename(source))
        self._sandbox.copy_out(source, local_path)

    def read_file(self, container_path: str) -> str:
        """Reads a file, each byte as one character (latin-1)."""
        return self._sandbox.read_file(_absolute(container_path)).decode("latin-1")

    def write_file(self, container_path: str, content: str | bytes) -> None:
        """Writes a file, in the place where one is; directories are made."""
        path = _absolute(container_path)
        data = content.encode() if isinstance(content, str) else content
        files = self._sandbox.files
        try:
            files.write_bytes(path, data, how="truncate")
        except FileNotFoundError:
            files.write_bytes(self._with_parents(path), data, how="truncate")

    def _is_directory(self, path: str) -> bool:
        files = self._sandbox.files
        return files.exists(path) and stat.S_ISDIR(files.stat(path).st_mode)

    def _with_parents(self, path: str) -> str:
        path = _absolute(path)
        self._sandbox.files.makedirs(os.path.dirname(path))
        return path

    def reset(self) -> None:
        """Makes it as new; what runs in the background is ended and forgotten."""
        begin = time.monotonic()
        self._jobs.clear()
        self._not_started.clear()
        self._typed.clear()
        self._sandbox.reset()
        self._make_working_dir()
        logger.debug("reset of %s (%.1f ms)", self._name, (time.monotonic() - begin) * 1000)

    def delete(self) -> None:
        """Ends all its processes and removes what it has written. A second time is no error."""
        self._jobs.clear()
        self._not_started.clear()
        self._sandbox.delete()
        logger.info("sandbox %s is deleted", self._name)

    @property
    def rootfs(self) -> Path:
        """A path on the host through which its tree can be looked at: ``/proc/PID/root``.

        It is another one after a reset, and nothing when it is deleted. Whoever opens a path
        below it follows links that a guest has made, absolute ones to the host's own files: use
        ``read_file``, ``copy_from`` and their like for what may be hostile.
        """
        return Path(f"/proc/{self._sandbox.init_pid}/root")

    @property
    def native(self) -> adl.Sandbox:
        """What it is made of: everything else that there is."""
        return self._sandbox

    def __repr__(self) -> str:
        fs = self._config.fs_backend
        return f"Sandbox(name={self._name!r}, fs={fs}, rootfs={self.rootfs})"


_numbers = itertools.count()

_ALL = (256 << 20, 0)
"""How much output is kept, in bytes: all that anyone looks at."""

_ENVIRONMENT = {"HOME": "/root", "TERM": "xterm-256color"}
_ON_TERMINAL = {"HOME": "/root", "TERM": "dumb", "NO_COLOR": "1"}
"""So programs print no escapes."""


def _options(config: SandboxConfig, name: str) -> Any:
    state = None
    if config.env_base_dir != SandboxConfig.env_base_dir:
        os.makedirs(config.env_base_dir, exist_ok=True)
        state = os.path.join(config.env_base_dir, "adl")
    return {
        "image": _image(config),
        "hostname": name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name) else None,
        "network": "none" if config.net_isolate else "host",
        "upper": adl.Upper.btrfs() if config.fs_backend == "btrfs" else adl.Upper.disk(),
        "mounts": [_volume(spec) for spec in config.volumes],
        "limits": _limits(config),
        "env": {**(_ON_TERMINAL if config.tty else _ENVIRONMENT), **config.environment},
        "cwd": config.working_dir or "/",
        "state_directory": state,
        # Those that are reset are reset often.
        "spare": True,
    }


def _image(config: SandboxConfig) -> Any:
    if config.image == "host":
        return adl.Image.host()
    if os.path.exists(config.image):
        return Path(config.image)
    prepared = Path(config.rootfs_cache_dir) / re.sub(r"[/:.]", "_", config.image)
    if prepared.is_dir():
        return prepared
    if config.image.startswith(("/", "./", "../")):
        raise FileNotFoundError(f"the image {config.image!r} is no directory and no file")
    return adl.Image.reference(config.image)


def _volume(spec: str) -> adl.Volume:
    parts = spec.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"the volume {spec!r} is not HOST:CONTAINER or HOST:CONTAINER:MODE")
    access = parts[2] if len(parts) == 3 else "rw"
    if access not in ("ro", "rw", "cow"):
        raise ValueError(f"the volume {spec!r}: the mode is not ro, rw or cow")
    return adl.Volume(parts[0], parts[1], access)  # type: ignore[arg-type]


def _limits(config: SandboxConfig) -> adl.Limits | None:
    memory = _number("memory_max", config.memory_max)
    pids = _number("pids_max", config.pids_max)
    cpus = _cpus(config.cpu_max)
    if memory is None and pids is None and cpus is None:
        return None
    return adl.Limits(cpus=cpus, memory=memory, pids=pids)


def _number(name: str, text: Any) -> int | None:
    if text is None or str(text).strip() in ("", "max"):
        return None
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(i?B)?\s*", str(text), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{name}: {text!r} is no number, such as 536870912 or 512M, nor max")
    power = " KMGT".index(found[2].upper() or " ")
    return int(found[1]) << 10 * power


def _cpus(text: Any) -> float | None:
    if text is None or str(text).split()[:1] in ([], ["max"]):
        return None
    parts = str(text).split()
    try:
        quota, period = int(parts[0]), int(parts[1]) if len(parts) > 1 else 100_000
        if len(parts) > 2 or quota <= 0 or period <= 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"cpu_max: {text!r} is not QUOTA PERIOD, as 50000 100000") from None
    return quota / period


def _args(command: str | Sequence[str]) -> str | list[str]:
    return command if isinstance(command, str) else list(command)


def _absolute(path: str) -> str:
    return os.path.join("/", path)


def _text(output: bytes) -> str:
    return output.decode("utf-8", "backslashreplace")


def _echo_nothing(terminal: adl.Terminal) -> None:
    """Has what is typed not be part of the output. It comes before anything is typed."""
    attributes = termios.tcgetattr(terminal.fileno())
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal.fileno(), termios.TCSANOW, attributes)


class _Typed:
    """What is typed, for the command that runs or the next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = bytearray()
        self._is_on = False

    def add(self, data: bytes) -> None:
        with self._changed:
            self._waiting += data
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._waiting.clear()

    @contextlib.contextmanager
    def on(self, terminal: adl.Terminal) -> Iterator[None]:
        """Types what comes meanwhile, as fast as someone reads it; what no one has read is lost
        with the terminal."""
        self._is_on = True
        fd = os.dup(terminal.fileno())
        typist = threading.Thread(target=self._type, args=(fd,), name="adl-typist", daemon=True)
        typist.start()
        try:
            yield
        finally:
            with self._changed:
                self._is_on = False
                self._changed.notify_all()
            typist.join()
            os.close(fd)

    def _type(self, fd: int) -> None:
        os.set_blocking(fd, False)
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        rest = b""
        while True:
            with self._changed:
                while self._is_on and not rest and not self._waiting:
                    self._changed.wait()
                if not self._is_on:
                    return
                rest += self._waiting
                self._waiting.clear()
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                poll.poll(20)
            except OSError:
                rest = b""  # No one has it open any more.
