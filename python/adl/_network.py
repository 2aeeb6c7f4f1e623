"""Sockets in and out of a sandbox, and its ports."""

from __future__ import annotations

import atexit
import enum
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from adl._errors import InvalidError

if TYPE_CHECKING:
    from adl import _adl

__all__ = [
    "Address",
    "ConnectionEnd",
    "ConnectionEndReason",
    "ConnectionLimits",
    "ConnectionStats",
    "Forward",
    "Port",
    "Publish",
]

Address = str | tuple[str, int]
"""Where a socket is: ``"127.0.0.1:80"``, ``"[::1]:80"``, or a host and a port, as
``("127.0.0.1", 80)``."""

_MOST_ADDRESSES = 16
"""How many addresses of a name are tried: as many as the engine takes."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What the connections of a port may take; by default as much as there is."""

    connections: int | None = None
    """How many there may be at once. Others wait in the kernel until there is room."""
    connections_per_second: int | None = None
    """How many may begin in a second. Others wait."""
    bytes_per_second: int | None = None
    """How many bytes may pass in a second, both ways together. What is more waits."""
    bytes: int | None = None
    """How many bytes may pass in all, both ways together. After that all connections are reset,
    and so is each that begins."""


@dataclass(frozen=True)
class Publish:
    """A port of the host's that leads to a TCP server in the sandbox."""

    address: Address
    """Where the host listens, as ``"127.0.0.1:8080"``. With port 0 the kernel picks one."""
    port: int
    """The port inside. A server may listen on all addresses, on 127.0.0.1 or on ::1."""
    limits: ConnectionLimits | None = None
    """What connections may take."""


@dataclass(frozen=True)
class Forward:
    """A port in the sandbox that leads to a TCP server of the host's, or one that it reaches."""

    port: int | Address
    """The port inside, on 127.0.0.1, or where else it is inside. With port 0 the kernel picks
    one."""
    to: Address
    """Where it leads to. A name, as in ``"db.internal:5432"``, is looked up when the port is made;
    its addresses are tried in turn, 16 at most."""
    limits: ConnectionLimits | None = None
    """What connections may take."""


def _native_limits(limits: Any) -> dict[str, Any] | None:
    if limits is None:
        return None
    if not isinstance(limits, ConnectionLimits):
        raise TypeError(f"limits: expected ConnectionLimits, not {type(limits).__name__}")
    return asdict(limits)


def native_publish(publish: Any) -> dict[str, Any]:
    """It, as the engine takes it."""
    if not isinstance(publish, Publish):
        raise TypeError(f"publish: expected Publish, not {type(publish).__name__}")
    limits = _native_limits(publish.limits)
    return {"address": publish.address, "port": publish.port, "limits": limits}


def native_forward(forward: Any) -> dict[str, Any]:
    """It, as the engine takes it: what a name stands for is looked up."""
    if not isinstance(forward, Forward):
        raise TypeError(f"forward: expected Forward, not {type(forward).__name__}")
    port = forward.port
    address = ("127.0.0.1", port) if isinstance(port, int) else port
    limits = _native_limits(forward.limits)
    return {"address": address, "to": _look_up(forward.to), "limits": limits}


def _look_up(to: Address) -> Sequence[Address]:
    """The addresses of a server; what is no name of one is left to the engine to refuse."""
    if isinstance(to, str):
        host, colon, port = to.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or host.endswith("]"):
            return [to]
    elif isinstance(to, tuple) and len(to) >= 2 and isinstance(to[0], str):
        host, port = to[0], str(to[1])
    else:
        return [to]
    if not host or ":" in host or not 0 < int(port) < 65536:
        return [to]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except UnicodeError as error:
        why = f"{host!r} is no name of a machine: {error}"
        raise InvalidError(f"invalid forward: {why}", what="forward", why=why) from None
    addresses = dict.fromkeys((str(address[0]), int(address[1])) for *_, address in found)
    return list(addresses)[:_MOST_ADDRESSES]


@dataclass(frozen=True)
class Port:
    """A port of a sandbox: one of the host's that leads into it, or one in it that leads out."""

    address: tuple[str, int]
    """Where it listens: on the host, if it leads into the sandbox, else inside."""
    published: int | None
    """The port inside that it leads to; None for one that leads out."""
    forwarded_to: tuple[tuple[str, int], ...]
    """Where it leads to outside; nothing for one that leads in."""
    _native: _adl.Port = field(repr=False, hash=False)

    @classmethod
    def _of(cls, native: _adl.Port) -> Port:
        to = tuple(native.forwarded_to)
        return cls(native.address, native.published, to, native)


class ConnectionEndReason(str, enum.Enum):
    """Why a connection of a port has ended."""

    CLOSED = "closed"
    """Both sides have ended it."""
    CLIENT_RESET = "client_reset"
    """Who had connected has reset it, or can't be reached any more."""
    SERVER_RESET = "server_reset"
    """The server has reset it, or can't be reached any more."""
    REFUSED = "refused"
    """No server took it, for the reason that ``errno`` tells."""
    CONNECT_TIMEOUT = "connect_timeout"
    """No server took it within ten seconds."""
    HALF_CLOSED_TIMEOUT = "half_closed_timeout"
    """One side had ended, and for a minute nothing came of the other."""
    BYTE_LIMIT = "byte_limit"
    """``ConnectionLimits.bytes`` were used up."""
    SANDBOX_ENDED = "sandbox_ended"
    """The sandbox has ended, was reset or deleted, or the port was closed."""


@dataclass(frozen=True)
class ConnectionEnd:
    """The end of a connection of a port."""

    port: Port
    """Which port it came to."""
    peer: tuple[str, int]
    """Who had connected: outside, or inside."""
    reason: ConnectionEndReason
    """Why it has ended."""
    errno: int | None
    """The kernel's reason, where no server took it."""
    bytes_in: int
    """How many bytes went into the sandbox."""
    bytes_out: int
    """How many bytes came out of it."""
    duration: float
    """How long it was there, in seconds."""
    untold: int
    """How many ends before this one were not told: they came faster than they were taken."""

    @classmethod
    def _of(cls, told: dict[str, Any]) -> ConnectionEnd:
        port, reason = Port._of(told["port"]), ConnectionEndReason(told["reason"])
        return cls(**{**told, "port": port, "reason": reason})


class ConnectionStats(NamedTuple):
    """What the connections of a sandbox's ports have come to, since it has had the first."""

    open: int
    """How many there are."""
    begun: int
    """How many there were in all."""
    failed: int
    """How many have ended otherwise than by both sides."""
    bytes_in: int
    """How many bytes went into the sandbox."""
    bytes_out: int
    """How many bytes came out of it."""
    untold: int
    """How many ends were not told to ``Sandbox.watch_connections``."""


def socket_of(fd: int) -> socket.socket:
    """The socket that a descriptor is, which is its from here on."""
    try:
        return socket.socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise


_watching: set[tuple[threading.Thread, _adl.Ends]] = set()

# A fork has none of the threads.
os.register_at_fork(after_in_child=_watching.clear)


def watch(ends: _adl.Ends, callback: Callable[[ConnectionEnd], object]) -> None:
    """Has a thread of Python's call this with each end."""

    def tell() -> None:
        try:
            while (told := ends.next()) is not None:
                try:
                    callback(ConnectionEnd._of(told))
                except BaseException as error:
                    _tell_of(error, callback)
        finally:
            _watching.discard(one)

    one = (threading.Thread(target=tell, name="adl-connections", daemon=True), ends)
    _watching.add(one)
    one[0].start()


def _end_watches() -> None:
    """At the end of the interpreter no thread may be in the engine. One that is in its callback
    is Python's to end."""
    watching = list(_watching)
    for _, ends in watching:
        ends.close()
    for thread, _ in watching:
        thread.join(_LAST_CALLS / len(watching))


_LAST_CALLS = 1.0
"""How long callbacks may take at the end, in seconds."""

atexit.register(_end_watches)


@dataclass
class _Unraisable:
    """What ``sys.unraisablehook`` takes."""

    exc_type: type[BaseException]
    exc_value: BaseException | None
    exc_traceback: Any
    err_msg: str | None
    object: Any


def _tell_of(error: BaseException, callback: Any) -> None:
    message = "Exception ignored in a callback of Sandbox.watch_connections"
    told = _Unraisable(type(error), error, error.__traceback__, message, callback)
    try:
        sys.unraisablehook(told)
    except BaseException:
        pass  # There is no one else to tell.
