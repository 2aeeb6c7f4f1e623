"""What a caller says of a sandbox, as plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, Literal, TypedDict

from adl._network import Forward, Publish, native_forward, native_publish

if TYPE_CHECKING:
    from adl._snapshot import Snapshot

__all__ = [
    "Access",
    "CommandOptions",
    "Device",
    "Direct",
    "FileOptions",
    "HostPath",
    "Image",
    "IoLimit",
    "Limits",
    "Mount",
    "PoolOptions",
    "SandboxOptions",
    "Tmpfs",
    "Upper",
    "Volume",
]

StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Seconds = float | timedelta
Args = str | Sequence[StrOrBytesPath]
Access = Literal["ro", "rw", "cow"]
"""What may be done with a volume: read; read and write; read, and write to a copy that is gone
with the sandbox and with a reset."""


@dataclass(frozen=True)
class HostPath:
    """A path of the host below a base from which on nothing is trusted.

    A plain path is the caller's word, links and all. Where a guest or a tenant had a hand in what
    lies there, as in what was copied out of a sandbox, this says from where on no link is followed
    and nothing leads out.
    """

    base: StrOrBytesPath
    """The directory that is trusted."""
    path: StrOrBytesPath
    """The path below it."""


AnyHostPath = StrOrBytesPath | HostPath


def host_path(path: AnyHostPath) -> Any:
    """It, as the engine takes it."""
    return (path.base, path.path) if isinstance(path, HostPath) else path


@dataclass(frozen=True)
class Image:
    """What a sandbox sees as its root file system at first. It stays as it is."""

    kind: Literal["host", "directory", "archive", "layers", "reference", "snapshot"]
    """Which one it is."""
    source: Any = None
    """The path, or the name."""
    which: str | None = None
    """Which image, where several are in one place."""

    @classmethod
    def host(cls) -> Image:
        """The programs of this machine's ``/usr``, and nothing of its data. The default."""
        return cls("host")

    @classmethod
    def directory(cls, path: AnyHostPath) -> Image:
        """A directory with a root file system, as debootstrap or ``docker export`` leave one."""
        return cls("directory", path)

    @classmethod
    def archive(cls, path: AnyHostPath) -> Image:
        """A tar archive of one, plain or compressed by gzip or zstd, or of ``docker save``.

        It is unpacked by the first sandbox of it, and again when the file has changed.
        """
        return cls("archive", path)

    @classmethod
    def reference(cls, name: str) -> Image:
        """An image of a registry, as ``debian:12`` or ``registry:5000/team/app@sha256:…``.

        One that is not in the state directory is fetched by the first sandbox of it, with skopeo,
        podman or docker, and so by their logins and mirrors. ``Images.pull`` fetches it before,
        or again, and tells of the progress. What it says of commands (``ImageConfig``) holds
        where the options say nothing else.
        """
        return cls("reference", name)

    @classmethod
    def layers(cls, path: AnyHostPath, which: str | None = None) -> Image:
        """An image in layers in a file or a directory: what ``docker save`` and ``podman save``
        write, or an OCI image layout. Where several images are in it, ``which`` names one.

        Its layers are unpacked by the first sandbox of it.
        """
        return cls("layers", path, which)

    @classmethod
    def snapshot(cls, name: str) -> Image:
        """A snapshot in the state directory, by its name."""
        return cls("snapshot", name)


_PATHS = ("/", "./", "../")


def image_of(text: str) -> Image | None:
    """The image that a str names, as on the command line; None if it is a path."""
    if text == "host":
        return Image.host()
    if text.startswith("snapshot:"):
        return Image.snapshot(text.removeprefix("snapshot:"))
    if text in (".", "..") or text.startswith(_PATHS):
        return None
    return Image.reference(text)


def native_image(image: Any) -> Any:
    """The image that was meant, as the engine takes it."""
    from adl._snapshot import Snapshot

    if isinstance(image, Snapshot):
        return image._native
    named = image_of(image) if isinstance(image, str) else image
    if isinstance(named, Image):
        if named.kind == "layers":
            return ("layers", (host_path(named.source), named.which))
        return (named.kind, host_path(named.source))
    if isinstance(image, (str, bytes, os.PathLike, HostPath)):
        return ("path", host_path(image))
    raise TypeError(
        f"image: expected Image, Snapshot, str, bytes or os.PathLike, not {type(image).__name__}"
    )


def may_be_fetched(image: Any) -> bool:
    """Whether a sandbox of it may have to wait for a registry."""
    named = image_of(image) if isinstance(image, str) else image
    return isinstance(named, Image) and named.kind == "reference"


@dataclass(frozen=True)
class Upper:
    """Where the writes of a sandbox go. They are gone when it is deleted."""

    kind: Literal["disk", "memory", "btrfs"]
    """Which one it is."""
    size: int | None = None
    """The most that it may take, in bytes; None is all that there is."""

    @classmethod
    def disk(cls, size: int | None = None) -> Upper:
        """A directory below the state directory. A size takes project quotas (ext4, xfs)."""
        return cls("disk", size)

    @classmethod
    def memory(cls, size: int) -> Upper:
        """Memory, of at most so many bytes. There are no snapshots of it."""
        return cls("memory", size)

    @classmethod
    def btrfs(cls, size: int | None = None) -> Upper:
        """A btrfs subvolume below the state directory. A size takes quota groups."""
        return cls("btrfs", size)


@dataclass(frozen=True)
class Volume:
    """A directory or a regular file of the host, mounted in the sandbox."""

    source: AnyHostPath
    """The path outside."""
    target: StrOrBytesPath
    """The path inside, absolute."""
    access: Access = "ro"
    """What may be done with it: ``"ro"``, ``"rw"`` or ``"cow"``."""


@dataclass(frozen=True)
class Tmpfs:
    """An empty file system in memory."""

    target: StrOrBytesPath
    """The path inside, absolute."""
    size: int
    """The most that it may take, in bytes."""
    mode: int = 0o1777
    """The mode of its topmost directory."""
    uid: int = 0
    """The user whose directory that is."""
    gid: int = 0
    """The group whose directory that is."""
    can_execute: bool = True
    """Whether programs there can be executed."""
    can_write: bool = True
    """Whether it can be written to."""


@dataclass(frozen=True)
class Device:
    """A device node of the host, and what can be done with the device."""

    source: AnyHostPath
    """The path outside."""
    target: StrOrBytesPath
    """The path inside, absolute."""


Mount = Volume | Tmpfs | Device
"""Something that is mounted in a sandbox, on top of what its image has there."""


def native_mount(mount: Any) -> tuple[str, dict[str, Any]]:
    """A mount, as the engine takes it."""
    if not isinstance(mount, (Volume, Tmpfs, Device)):
        raise TypeError(f"mounts: expected Volume, Tmpfs or Device, not {type(mount).__name__}")
    named = {field.name: getattr(mount, field.name) for field in fields(mount)}
    if "source" in named:
        named["source"] = host_path(named["source"])
    return type(mount).__name__.lower(), named


@dataclass(frozen=True)
class IoLimit:
    """What may be read from and written to a disk in a second."""

    device: StrOrBytesPath
    """The block device."""
    read_bytes: int | None = None
    """Bytes read."""
    write_bytes: int | None = None
    """Bytes written."""
    read_operations: int | None = None
    """Reads."""
    write_operations: int | None = None
    """Writes."""


@dataclass(frozen=True)
class Limits:
    """What all commands of a sandbox together may use; by default there is no limit.

    Limits take cgroups that the caller may make: as root, or where systemd has delegated them.
    """

    cpus: float | None = None
    """CPU time, in CPUs: 1.5 is one and a half. At least 0.01."""
    cpu_weight: int | None = None
    """The share of CPU time where there is not enough for all, from 1 to 10,000; others have
    100."""
    memory: int | None = None
    """Memory, in bytes. Where it is used up, the kernel kills a command, whose end is
    ``EndReason.OUT_OF_MEMORY``."""
    memory_high: int | None = None
    """Memory above which processes are slowed down, in bytes. Cgroup version 2 only."""
    swap: int | None = None
    """Swap beside the memory, in bytes. By default none where ``memory`` is limited."""
    pids: int | None = None
    """Processes and threads."""
    io: Sequence[IoLimit] = ()
    """What may be read from and written to disks."""
    cpuset: str | None = None
    """The CPUs to run on, as ``"0-3,6"``."""
    accounting: bool = False
    """Everything is counted, and any limit can be set later."""


def native_limits(limits: Any) -> dict[str, Any]:
    """Limits, as the engine takes them."""
    if not isinstance(limits, Limits):
        raise TypeError(f"limits: expected Limits, not {type(limits).__name__}")
    return asdict(limits)


@dataclass(frozen=True)
class Direct:
    """A descriptor of the caller's itself as a stream of a command, with nothing between.

    Otherwise bytes go through a pipe of adl's own, so that the command holds nothing of the
    caller's. A directory, a terminal and, as stdin, a file that is open for writing are refused.
    """

    file: int | IO[Any]
    """The descriptor, or a file that has one."""


Stream = int | IO[Any] | Direct | None


def native_stream(stream: Any) -> Any:
    """A stream, as the engine takes it."""
    if isinstance(stream, Direct):
        return ("direct", native_stream(stream.file))
    if isinstance(stream, int) or stream is None:
        return stream
    if hasattr(stream, "fileno"):
        return stream.fileno()
    raise TypeError(f"expected a descriptor or a file, not {type(stream).__name__}")


class PoolOptions(TypedDict, total=False):
    """How a sandbox is made, apart from its image. All have a default."""

    name: str | None
    """The name, unique in the state directory: letters, digits, ``.``, ``_`` and ``-``, at most
    64. By default a fresh one."""
    hostname: str | None
    """What ``uname -n`` prints inside; by default the name."""
    network: str | None
    """``"none"``: a network of its own with a loopback device, the default; ``"host"``;
    ``"ns:PATH"``: a network namespace, as ``"ns:/run/netns/vpn"``."""
    publish: Sequence[Publish] | None
    """Ports of the host's that lead to servers inside, from the beginning on."""
    forward: Sequence[Forward] | None
    """Ports inside that lead to servers that the host reaches."""
    etc_files: Literal["missing", "all", "none"] | None
    """Which of ``/etc/hosts``, ``hostname`` and ``resolv.conf`` are its own: those that the image
    lacks, the default; all; none."""
    sysfs: Literal["with_limits", "always", "never"] | None
    """Whether it has a ``/sys``; by default with limits."""
    shm_size: int | None
    """The most that may be in ``/dev/shm``, in bytes; 64 MiB by default."""
    sysctls: Mapping[str, object] | None
    """Kernel parameters of its own namespaces, as ``{"kernel.sem": "250 32000 100 128"}``."""
    upper: Upper | None
    """Where its writes go; by default to disk."""
    read_only: bool | None
    """Whether no one can write to the root file system."""
    mounts: Sequence[Mount] | None
    """Volumes, tmpfs and devices."""
    capabilities: Sequence[str] | None
    """The capabilities of commands that run as root, as ``["chown", "setuid"]`` or, from the
    default set on, ``["+sys_ptrace", "-mknod"]``. By default those of Docker's containers."""
    seccomp: Literal["default", "unconfined"] | None
    """Which system calls there are; ``"unconfined"`` lets hostile code reach every corner of the
    kernel."""
    limits: Limits | None
    """What its commands may use together."""
    env: Mapping[str, str] | None
    """Environment variables of all its commands, beside ``PATH``, ``HOME`` and their like. A
    snapshot keeps them on disk: what is secret is better given to each command."""
    cwd: StrOrBytesPath | None
    """Where its commands start, and relative paths of file calls; ``/`` by default."""
    user: str | int | None
    """Who runs its commands: ``USER`` or ``USER:GROUP``, names or numbers; root by default."""
    umask: int | None
    """The file mode creation mask; 0o022 by default."""
    rlimits: Mapping[str | int, int | tuple[int, int]] | None
    """Resource limits of each process, by name (``"nofile"``) or number
    (``resource.RLIMIT_NOFILE``); a number for both, or ``(soft, hard)``; -1 is none."""
    timeout: Seconds | None
    """The longest that a command may run, in seconds; by default there is no end."""
    cpu_time: Seconds | None
    """The CPU time that a command and all that it starts may use, in seconds."""
    spare: bool | None
    """Whether a second sandbox is made beside it, which the next reset puts in its place: that
    takes a fraction of the time then. It needs as much as another does, but no other ids."""
    ids: int | None
    """How many user and group ids there are inside; 65,536 by default, for an ordinary user 1."""
    cgroup_parent: StrOrBytesPath | None
    """The cgroup to make those of the sandbox in, as ``/proc/self/cgroup`` tells paths."""
    state_directory: StrOrBytesPath | None
    """Where sandboxes keep what must be on disk; by default ``$ADL_STATE_DIR``, else
    ``/var/lib/adl`` for root and ``~/.local/state/adl`` for others."""


class SandboxOptions(PoolOptions, total=False):
    """How a sandbox is made: the keyword arguments of ``Sandbox``. All have a default."""

    image: Image | Snapshot | AnyHostPath | None
    """What the root file system looks like at first: an ``Image``; a ``Snapshot``, whose other
    options are then the defaults; ``"host"``, the default: the programs of this machine;
    ``"snapshot:NAME"``; the name of an image of a registry, as ``"debian:12"``; or a path, as a
    ``str`` that begins with ``/``, ``./`` or ``../`` or of any other type: a directory with a root
    file system or with an image in layers, a tar archive of one, or what ``docker save`` writes."""


def native_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a sandbox, as the engine takes them."""
    native = dict(options)
    if native.get("image") is not None:
        native["image"] = native_image(native["image"])
    if native.get("mounts") is not None:
        native["mounts"] = [native_mount(mount) for mount in native["mounts"]]
    if native.get("publish") is not None:
        native["publish"] = [native_publish(publish) for publish in native["publish"]]
    if native.get("forward") is not None:
        native["forward"] = [native_forward(forward) for forward in native["forward"]]
    if native.get("limits") is not None:
        native["limits"] = native_limits(native["limits"])
    upper = native.get("upper")
    if upper is not None:
        if not isinstance(upper, Upper):
            raise TypeError(f"upper: expected Upper, not {type(upper).__name__}")
        native["upper"] = (upper.kind, upper.size)
    if isinstance(native.get("capabilities"), str):
        raise TypeError("capabilities: expected a sequence of names, not str")
    return native


class FileOptions(TypedDict, total=False):
    """As whom, where from and how far file calls go: the arguments of ``Files.with_options``."""

    user: str | int | None
    """Who makes the call: ``USER`` or ``USER:GROUP``, names or numbers."""
    uid: int | None
    """The user id, in place of a user that is named."""
    gid: int | None
    """The group id, likewise."""
    groups: Sequence[int] | None
    """The supplementary groups."""
    cwd: StrOrBytesPath | None
    """Where relative paths start."""
    umask: int | None
    """The file mode creation mask."""
    timeout: Seconds | None
    """How long a call may take, in seconds; by default 30, and 600 for copies and archives."""
    limit: int | None
    """The most that is read, written or copied, in bytes; more is ``TooLargeError``. By default
    64 MiB of what is read into memory, else 64 GiB."""
    entry_limit: int | None
    """The most entries of a tree or a directory; 2,097,152 by default."""
    keep_owners: bool | None
    """Whether copies and archives keep owners and groups."""
    keep_set_ids: bool | None
    """Whether copies and archives keep set-user-id and set-group-id bits."""


class CommandOptions(TypedDict, total=False):
    """How a command runs, beside what each call names itself. All have a default."""

    env: Mapping[str, str | None] | None
    """Environment variables to set, and with None to remove."""
    clear_env: bool | None
    """Whether it has no variables but those in ``env``."""
    cwd: StrOrBytesPath | None
    """Where it starts."""
    user: str | int | None
    """Who runs it: ``USER`` or ``USER:GROUP``, names or numbers."""
    uid: int | None
    """The user id, in place of a user that is named."""
    gid: int | None
    """The group id, likewise."""
    groups: Sequence[int] | None
    """The supplementary groups."""
    umask: int | None
    """The file mode creation mask."""
    rlimits: Mapping[str | int, int | tuple[int, int]] | None
    """Resource limits, as those of a sandbox."""
    nice: int | None
    """How much it stands back for others, from 0 to 19."""
    oom_score_adj: int | None
    """How much sooner than others it is killed when memory runs out, from 0 to 1000."""
    cpu_time: Seconds | None
    """The CPU time that it and all that it starts may use, in seconds."""
    leftovers: Literal["keep", "end"] | None
    """What becomes of processes that it has started and that outlive it: they live on, by
    default, or are killed before its end is told."""
    idle_timeout: Seconds | None
    """It is ended when it has written nothing for so many seconds. Not with ``popen``."""
    output_limit: int | None
    """It is ended when it has written more bytes. Not with ``popen``."""
    keep_output: tuple[int, int] | None
    """How many bytes of the beginning and of the end of each stream are kept; 8 MiB each by
    default. Those between are counted and dropped. Not with ``popen``."""
