"""Images in layers: what docker, podman and buildah make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from adl import _adl, _async
from adl._config import AnyHostPath, Seconds, StrOrBytesPath, host_path
from adl._errors import Error

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ImageConfig",
    "ImageInfo",
    "Images",
    "MadeImage",
    "NotKept",
    "Progress",
    "PullOptions",
    "pull",
]


class Progress(NamedTuple):
    """How far an image is on its way."""

    phase: str
    """``"fetching"``: its layers are fetched, several at a time; ``"unpacking"``: one is
    unpacked. Layers that were there before are left out."""
    layer: int
    """How many layers are there, or which one is unpacked, from 1 on, the lowest first."""
    layers: int
    """How many layers there are."""
    bytes: int
    """How many bytes are there, of all layers or of this one, as they come."""
    of: int
    """How many bytes that are; 0 where that is not known."""

    def __str__(self) -> str:
        layers = f"{self.layer} of {self.layers} layers"
        if self.phase == "unpacking":
            layers = f"layer {self.layer} of {self.layers}"
        done, of = (number / (1 << 20) for number in (self.bytes, self.of))
        return f"{self.phase}: {layers}, {done:.1f} of {of:.1f} MiB"


class NotKept(NamedTuple):
    """What of a layer was not kept, of all that its archive says."""

    layer: int
    """Which layer, from 1 on, the lowest first."""
    layers: int
    """How many layers there are."""
    owners: int
    """How many files have become the calling user's, who may give files to no one else."""
    nodes: int
    """How many devices, and files of an unknown kind, were left out."""
    attributes: int
    """How many extended attributes were left out, that can't be set or that only hosts set."""


class PullOptions(TypedDict, total=False):
    """How an image is fetched and unpacked."""

    progress: Callable[[Progress], object] | None
    """Hears how far it is, some times a second."""
    not_kept: Callable[[NotKept], object] | None
    """Hears of each layer of which not all was kept."""
    timeout: Seconds | None
    """The longest that it may take, in seconds; an hour by default."""
    insecure: bool
    """Whether its registry may be one without encryption, or with a certificate no one knows."""
    ids: int | None
    """As in ``SandboxOptions``: layers are unpacked for sandboxes with so many."""
    max_size: int | None
    """The most bytes of a layer's archive, and of what is made of it; 64 GiB by default."""
    max_files: int | None
    """The most files, directories, links and marks of a layer; 5,000,000 by default."""
    max_depth: int | None
    """The most directories within one another; 1024 by default."""
    max_ratio: int | None
    """The most bytes that one compressed byte may become, where it becomes much at all; 1000 by
    default."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image in layers says of the commands that are run in it.

    ``env``, ``working_dir`` and ``user`` hold in each sandbox of it whose options say nothing
    else.
    """

    env: dict[str, str]
    """Environment variables."""
    working_dir: str | None
    """Where commands start."""
    user: str | None
    """Who runs commands: ``USER`` or ``USER:GROUP``, each a name or a number."""
    entrypoint: list[str]
    """The program that is run, and its first arguments."""
    cmd: list[str]
    """Arguments of it, or the program where there is none."""
    stop_signal: str | None
    """The signal that asks it to end, as ``"SIGQUIT"`` or a number."""
    labels: dict[str, str]
    """What its makers say of it."""
    exposed_ports: list[str]
    """The ports that it listens on, as ``"80/tcp"``."""
    created: str | None
    """When it was made, as RFC 3339 has it."""


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image in layers."""

    names: list[str]
    """The whole names that lead to it, sorted, as ``"docker.io/library/debian:12"``. There is none
    where it was made of a file or a directory for a sandbox, or its name leads to a newer one."""
    digest: str
    """The digest of its manifest."""
    layers: list[str]
    """The digests of its layers, the lowest first."""
    size: int
    """How many bytes its layers have, as they came."""
    last_used: float | None
    """When a sandbox was last made of it, to a minute, in seconds since 1970."""
    config: ImageConfig
    """What it says of commands."""

    @classmethod
    def _of(cls, told: dict[str, Any]) -> ImageInfo:
        return cls(**{**told, "config": ImageConfig(**told["config"])})


class MadeImage(NamedTuple):
    """A directory that was made for sandboxes, of the host's files, an archive or a copy."""

    name: str
    """Its name: ``host-``, ``private-`` and ``own-`` are of the host, ``tar-`` of an archive,
    ``copy-`` and ``flat-`` of what a btrfs upper lies on."""
    size: int
    """How many bytes it takes on disk."""
    last_used: float | None
    """When a sandbox was last made of it, to a minute, in seconds since 1970."""


class Images:
    """The images in layers of a state directory: fetched, imported, listed and removed.

    By default the state directory is that of sandboxes: see ``SandboxOptions``.

    Callbacks are called in the thread that calls. What they raise, and a
    ``KeyboardInterrupt``, ends the wait; the image goes on to be fetched until its ``timeout``,
    and whoever asks for it again waits for that.

    >>> images = adl.Images()
    >>> images.pull("debian:12", progress=print, timeout=600).size
    48488241
    """

    __slots__ = ("_native",)

    def __init__(self, state_directory: StrOrBytesPath | None = None) -> None:
        self._native = _adl.Images(state_directory)

    def pull(self, name: str, **options: Unpack[PullOptions]) -> ImageInfo:
        """Fetches an image from its registry and unpacks it, also where it is there: what the name
        stands for may be another by now. What is there of it is not fetched again.

        Raises ``InvalidError`` for what is no name, ``PullError`` where it can't be fetched,
        ``TimedOutError``, ``UnsupportedError`` where nothing is installed that can fetch it, or it
        is for other machines, and ``RefusedError`` or ``TooLargeError`` for a layer that is not
        unpacked.
        """
        return ImageInfo._of(self._native.pull(name, *_settled(options)))

    def pull_if_missing(self, name: str, **options: Unpack[PullOptions]) -> None:
        """Fetches an image, unless it is there: see ``pull``. A sandbox of it does the same."""
        self._native.pull_if_missing(name, *_settled(options))

    async def apull(self, name: str, **options: Unpack[PullOptions]) -> ImageInfo:
        """Does what ``pull`` does, from a coroutine; callbacks are called by the event loop."""
        if (progress := options.get("progress")) is not None:
            options["progress"] = _async.in_loop(progress)
        if (not_kept := options.get("not_kept")) is not None:
            options["not_kept"] = _async.in_loop(not_kept)
        return await _async.in_own_thread(lambda: self.pull(name, **options))

    def import_image(
        self,
        path: AnyHostPath,
        name: str | None = None,
        *,
        which: str | None = None,
        **options: Unpack[PullOptions],
    ) -> ImageInfo:
        """Unpacks an image of a file or a directory, as ``Image.layers`` takes them, and gives it a
        name; without one, its own. Where several are in it, ``which`` names one.

        Raises ``InvalidError`` for what is no image, and where it has no name; else as ``pull``.
        """
        told = self._native.import_image(host_path(path), which, name, *_settled(options))
        return ImageInfo._of(told)

    def is_there(self, name: str, *, ids: int | None = None) -> bool:
        """Whether an image is there, for sandboxes with so many ids."""
        return self._native.is_there(name, ids)

    def all(self, *, onerror: Callable[[Error], object] | None = None) -> list[ImageInfo]:
        """All that there are, sorted by their names.

        ``onerror`` is called with why one can't be read; without it, such are left out.
        """
        read, unread = self._native.all()
        if onerror is not None:
            for error in unread:
                onerror(error)
        return [ImageInfo._of(told) for told in read]

    def get(self, name: str) -> ImageInfo:
        """What is known of an image, by a name, a digest, or at least six digits that one begins
        with. Raises ``NoImageError``."""
        return ImageInfo._of(self._native.get(name))

    def documents(self, name: str) -> tuple[bytes, bytes]:
        """The manifest and the configuration of an image, as they came: JSON."""
        return self._native.documents(name)

    def made(self) -> list[MadeImage]:
        """What was made of the host, of archives and of copies for sandboxes, by its names."""
        return [MadeImage(*told) for told in self._native.made()]

    def remove(self, name: str) -> list[str]:
        """Removes an image, or of one with several names that name; returns what was removed.

        By its digest, it is removed with all its names. ``made`` has names of its own. Raises
        ``NoImageError``, and ``BusyError`` where a sandbox or a snapshot lies on it: it stays then.
        """
        return self._native.remove(name)

    def prune(self, unused_for: Seconds) -> list[str]:
        """Removes images, and what was made of the host, of archives and of copies, that no one has
        used for so many seconds; also layers that are no image's. What is in use stays.

        Returns what was removed. Raises ``UncollectedError`` with what was not, and ``BusyError``
        while someone adds an image.
        """
        return self._native.prune(unused_for)


def pull(
    name: str,
    *,
    state_directory: StrOrBytesPath | None = None,
    **options: Unpack[PullOptions],
) -> ImageInfo:
    """Fetches an image from its registry and unpacks it: see ``Images.pull``."""
    return Images(state_directory).pull(name, **options)


def _settled(options: PullOptions) -> tuple[dict[str, Any], Callable[..., object] | None]:
    """The options as the engine takes them, and what it calls with a phase, a layer, how many
    there are, and the rest of a ``Progress`` or of ``NotKept``."""
    rest: dict[str, Any] = dict(options)
    hear = {name: rest.pop(name, None) for name in ("progress", "not_kept")}
    for name, callback in hear.items():
        if callback is not None and not callable(callback):
            raise TypeError(f"{name}: expected a callable, not {type(callback).__name__}")
    progress, not_kept = hear.values()
    if progress is None and not_kept is None:
        return rest, None

    def tell(phase: str, layer: int, layers: int, numbers: list[int]) -> None:
        if phase == "not kept":
            if not_kept is not None:
                not_kept(NotKept(layer, layers, *numbers))
        elif progress is not None:
            progress(Progress(phase, layer, layers, *numbers))

    return rest, tell
