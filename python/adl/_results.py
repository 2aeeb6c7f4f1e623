"""What calls return."""

from __future__ import annotations

import enum
import signal
import subprocess
from dataclasses import dataclass
from typing import Any, NamedTuple

from adl._errors import CalledProcessError, TimeoutExpired
from adl._network import ConnectionStats

__all__ = [
    "Change",
    "Check",
    "CompletedProcess",
    "CopyReport",
    "EndReason",
    "ExitStatus",
    "PartialOutput",
    "Stats",
    "Usage",
]


class EndReason(str, enum.Enum):
    """Why a command ended."""

    EXITED = "exited"
    """It exited by itself."""
    SIGNALED = "signaled"
    """A signal ended it, from inside or by ``send_signal`` and ``kill``."""
    TIMED_OUT = "timed_out"
    """Its ``timeout`` was up."""
    CPU_TIMED_OUT = "cpu_timed_out"
    """It had used its ``cpu_time``."""
    IDLE = "idle"
    """It wrote nothing for its ``idle_timeout``."""
    OUT_OF_MEMORY = "out_of_memory"
    """It, or something that it had started, was killed as the sandbox's memory was used up."""
    OUTPUT_LIMIT = "output_limit"
    """It wrote more than its ``output_limit``."""
    STOPPED = "stopped"
    """The caller had seen enough of its output."""
    KILLED = "killed"
    """It was killed with all that ran, by ``Sandbox.kill_all``."""
    SANDBOX_DIED = "sandbox_died"
    """The sandbox died, or was reset, deleted or made into a snapshot."""


_REASONS = {reason.value: reason for reason in EndReason}


class Usage(NamedTuple):
    """What a command and the children that it waited for used (``getrusage(2)``)."""

    user_time: float
    """CPU time in user mode, in seconds."""
    system_time: float
    """CPU time in the kernel, in seconds."""
    max_resident: int
    """The largest resident set of any one process, in bytes."""
    minor_faults: int
    """Page faults without I/O."""
    major_faults: int
    """Page faults with I/O."""
    read: int
    """Read from file systems, in bytes."""
    written: int
    """Written to file systems, in bytes."""
    voluntary_switches: int
    """Context switches by waiting."""
    involuntary_switches: int
    """Context switches by preemption."""


class ExitStatus(NamedTuple):
    """How a command ended."""

    returncode: int
    """What it exited with; -N if signal N ended it."""
    reason: EndReason
    """Why it ended."""
    duration: float
    """From its start to its end, in seconds."""
    usage: Usage
    """What it used; all zero where the sandbox has died."""
    core_dumped: bool
    """Whether a core was dumped."""
    survivors: bool
    """Whether some of what was killed had not ended when this was told, in a state in which the
    kernel can't end it. The sandbox is better deleted."""

    @classmethod
    def _of(cls, told: tuple[Any, ...]) -> ExitStatus:
        returncode, reason, duration, usage, core_dumped, survivors = told
        return cls(
            returncode, _REASONS[reason], duration, Usage._make(usage), core_dumped, survivors
        )

    @property
    def success(self) -> bool:
        """Whether it exited by itself, with 0."""
        return self.returncode == 0 and self.reason is EndReason.EXITED

    def __str__(self) -> str:
        if self.returncode >= 0:
            text = f"exited with {self.returncode}"
        else:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:
                name = f"signal {-self.returncode}"
            text = f"was ended by {name}"
        if self.reason in (EndReason.EXITED, EndReason.SIGNALED):
            return text
        return f"{text} ({self.reason.value.replace('_', ' ')})"


class CompletedProcess(subprocess.CompletedProcess[bytes]):
    """A command that has ended: how, why, and what it wrote.

    It is a ``subprocess.CompletedProcess`` with more: a ``returncode`` of -N is signal N.
    """

    args: Any
    """The command, as it was given."""
    returncode: int
    """What it exited with; -N if signal N ended it."""
    stdout: bytes
    """What it wrote to stdout, or to its terminal; empty if that went elsewhere."""
    stderr: bytes
    """What it wrote to stderr; empty if that went elsewhere."""
    stdout_dropped: int
    """How many bytes are left out in the middle of ``stdout``: see ``keep_output``."""
    stderr_dropped: int
    """How many bytes are left out in the middle of ``stderr``."""
    stdio_open: bool
    """Whether it has left a process behind that has stdout or stderr open."""

    def __init__(
        self,
        args: Any,
        status: ExitStatus,
        stdout: bytes = b"",
        stderr: bytes = b"",
        stdout_dropped: int = 0,
        stderr_dropped: int = 0,
        stdio_open: bool = False,
    ) -> None:
        self.args = args
        self._status: ExitStatus | tuple[Any, ...] = status
        self.returncode = status[0]
        self.stdout = stdout
        self.stderr = stderr
        self.stdout_dropped = stdout_dropped
        self.stderr_dropped = stderr_dropped
        self.stdio_open = stdio_open

    @classmethod
    def _of(cls, args: Any, told: tuple[Any, ...]) -> CompletedProcess:
        return cls(args, *told)

    @property
    def status(self) -> ExitStatus:
        """How it ended, with all that is known of that."""
        if not isinstance(self._status, ExitStatus):
            # Most callers look at the returncode alone.
            self._status = ExitStatus._of(self._status)
        return self._status

    @property
    def reason(self) -> EndReason:
        """Why it ended."""
        return self.status.reason

    @property
    def duration(self) -> float:
        """From its start to its end, in seconds."""
        return self.status.duration

    @property
    def usage(self) -> Usage:
        """What it used."""
        return self.status.usage

    @property
    def success(self) -> bool:
        """Whether it exited by itself, with 0."""
        return self.status.success

    @property
    def stdout_text(self) -> str:
        """``stdout`` as UTF-8, with U+FFFD for what is none."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def stderr_text(self) -> str:
        """``stderr`` as UTF-8, with U+FFFD for what is none."""
        return self.stderr.decode("utf-8", "replace")

    def check_returncode(self) -> None:
        """Raises ``CalledProcessError`` unless the command exited by itself, with 0."""
        if not self.success:
            raise CalledProcessError(self)

    def _check(self, timeout: float | None) -> CompletedProcess:
        if self.reason is EndReason.TIMED_OUT:
            after = self.duration if timeout is None else timeout
            raise TimeoutExpired(self.args, after, self.stdout, self.stderr, self)
        self.check_returncode()
        return self

    def __repr__(self) -> str:
        parts = [f"args={self.args!r}", f"returncode={self.returncode}"]
        if self.reason is not EndReason.EXITED:
            parts.append(f"reason={self.reason.value!r}")
        parts += [f"stdout={self.stdout!r}", f"stderr={self.stderr!r}"]
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class PartialOutput:
    """What a command in the background has written, or a part of it."""

    stdout: bytes
    """To stdout, as far as it is kept."""
    stderr: bytes
    """To stderr, likewise."""
    stdout_dropped: int
    """How many bytes are left out in the middle of ``stdout``."""
    stderr_dropped: int
    """How many bytes are left out in the middle of ``stderr``."""


@dataclass(frozen=True)
class Stats:
    """What was used, as the kernel's cgroups count it; None where they don't."""

    cpu_time: float | None
    """CPU time, in seconds."""
    throttled: float | None
    """How long it had to wait because of the limit of CPUs, in seconds. Of a sandbox only."""
    memory: int | None
    """Memory in use, in bytes, with the page cache."""
    memory_peak: int | None
    """The most memory that was in use at once, in bytes."""
    oom_kills: int | None
    """How many processes the kernel has killed because memory ran out."""
    pids: int | None
    """Processes and threads that there are."""
    pids_peak: int | None
    """The most that there were at once. Of a sandbox only."""
    pids_refused: int | None
    """How often one was refused because of the limit of pids. Of a sandbox only."""
    read_bytes: int | None
    """Bytes read from disks."""
    write_bytes: int | None
    """Bytes written to disks."""
    cpu_pressure: float | None
    """How long something waited for a CPU, in seconds. Of a sandbox only, as the next two."""
    memory_pressure: float | None
    """How long something waited for memory, in seconds."""
    io_pressure: float | None
    """How long something waited for a disk, in seconds."""
    connections: ConnectionStats | None
    """What the connections of its ports have come to. Of a sandbox only, and one that has had
    ports; it takes no cgroups."""

    @classmethod
    def _of(cls, told: dict[str, Any]) -> Stats:
        connections = told["connections"]
        if connections is not None:
            connections = ConnectionStats(**connections)
        return cls(**{**told, "connections": connections})


@dataclass(frozen=True)
class CopyReport:
    """What was copied, and what was not. Paths are relative to the top of the tree."""

    files: int
    """Regular files."""
    directories: int
    """Directories."""
    symbolic_links: int
    """Symbolic links."""
    hard_links: int
    """Further names of files."""
    bytes: int
    """Content of all files together, in bytes."""
    skipped: list[tuple[str, str]]
    """What has nothing to copy, with its kind, as ``"fifo"``; at most 10,000."""
    more_skipped: int
    """How many more were skipped."""
    cut_off: list[str]
    """Files that became shorter while they were read, with zeros at their ends."""
    more_cut_off: int
    """How many more were cut off."""


class Change(NamedTuple):
    """One path that is not as in the image."""

    path: str
    """The path inside, absolute. It may hold bytes that a guest chose."""
    kind: str
    """``"added"``, ``"modified"`` or ``"deleted"``."""


class Check(NamedTuple):
    """One thing that a sandbox is made of, as ``examine`` found it."""

    what: str
    """The thing."""
    verdict: str
    """``"good"``; ``"limited"``: sandboxes work with less; ``"missing"``: none works."""
    detail: str
    """What was seen."""
    remedy: str | None
    """What to do, if it is not all there."""
