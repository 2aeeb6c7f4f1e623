"""Linux sandboxes in about a millisecond: run other people's code, and keep it in.

>>> import adl
>>> with adl.Sandbox() as sandbox:
...     print(sandbox.run("echo hello from $(uname -n)").stdout_text)

``Sandbox`` is one, with its whole life; ``Sandbox.run`` runs a command in it. The names are those
of ``subprocess``, ``os`` and ``pathlib`` wherever these have one. Times are in seconds, sizes in
bytes, paths ``str``, ``bytes`` or ``os.PathLike``. All errors are ``adl.Error``.

``adl.compat`` is the interface of agentdocker-lite on this engine.
"""

from subprocess import DEVNULL, PIPE, STDOUT

from adl._adl import __version__
from adl._async import AsyncFiles, Process
from adl._config import (
    Access,
    CommandOptions,
    Device,
    Direct,
    FileOptions,
    HostPath,
    Image,
    IoLimit,
    Limits,
    Mount,
    SandboxOptions,
    Tmpfs,
    Upper,
    Volume,
)
from adl._errors import (
    BusyError,
    CalledProcessError,
    DeletedError,
    Error,
    FileError,
    ForkedProcessError,
    InvalidError,
    IoError,
    NameInUseError,
    NoImageError,
    NoSnapshotError,
    NotRegularError,
    ProtocolError,
    PullError,
    RefusedError,
    SandboxDiedError,
    SetupError,
    StartError,
    TimedOutError,
    TimeoutExpired,
    TooLargeError,
    UncollectedError,
    UndeliveredError,
    UnsupportedError,
)
from adl._files import DirEntry, FileReader, Files, FileWriter
from adl._images import ImageConfig, ImageInfo, Images, MadeImage, Progress, pull
from adl._process import Job, Popen, Terminal
from adl._results import (
    Change,
    Check,
    CompletedProcess,
    CopyReport,
    EndReason,
    ExitStatus,
    PartialOutput,
    Stats,
    Usage,
)
from adl._sandbox import Sandbox
from adl._snapshot import (
    Snapshot,
    collect_garbage,
    examine,
    finish_removals,
    pending_removals,
    wait_at_exit,
)

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Access",
    "AsyncFiles",
    "BusyError",
    "CalledProcessError",
    "Change",
    "Check",
    "CommandOptions",
    "CompletedProcess",
    "CopyReport",
    "DeletedError",
    "Device",
    "DirEntry",
    "Direct",
    "EndReason",
    "Error",
    "ExitStatus",
    "FileError",
    "FileOptions",
    "FileReader",
    "FileWriter",
    "Files",
    "ForkedProcessError",
    "HostPath",
    "Image",
    "ImageConfig",
    "ImageInfo",
    "Images",
    "InvalidError",
    "IoError",
    "IoLimit",
    "Job",
    "Limits",
    "MadeImage",
    "Mount",
    "NameInUseError",
    "NoImageError",
    "NoSnapshotError",
    "NotRegularError",
    "PartialOutput",
    "Popen",
    "Process",
    "Progress",
    "ProtocolError",
    "PullError",
    "RefusedError",
    "Sandbox",
    "SandboxDiedError",
    "SandboxOptions",
    "SetupError",
    "Snapshot",
    "StartError",
    "Stats",
    "Terminal",
    "TimedOutError",
    "TimeoutExpired",
    "Tmpfs",
    "TooLargeError",
    "UncollectedError",
    "UndeliveredError",
    "UnsupportedError",
    "Upper",
    "Usage",
    "Volume",
    "__version__",
    "collect_garbage",
    "examine",
    "finish_removals",
    "pending_removals",
    "pull",
    "wait_at_exit",
]
