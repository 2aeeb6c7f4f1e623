"""Pools of sandboxes that are ready before they are asked for."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from adl import _adl, _async
from adl._config import (
    AnyHostPath,
    Image,
    PoolOptions,
    SandboxOptions,
    Seconds,
    native_options,
)
from adl._errors import Error, TimedOutError
from adl._files import Files
from adl._sandbox import Sandbox

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from adl._snapshot import Snapshot

__all__ = ["Pool", "PoolStats", "PooledSandbox"]

_living: weakref.WeakSet[Pool] = weakref.WeakSet()


@dataclass(frozen=True)
class PoolStats:
    """What a pool has at one moment, and has done until then.

    Each number that only grows can be a counter of metrics, the others are gauges.
    """

    idle: int
    """Sandboxes that are ready."""
    in_use: int
    """Sandboxes that were acquired and not given back yet."""
    making: int
    """Sandboxes that are being made and prepared."""
    deleting: int
    """Sandboxes that were given back, and those that were sick, that are not deleted yet."""
    waiting: int
    """Callers that wait for one; all coroutines together are one."""
    made: int
    """How many were made and prepared."""
    failed: int
    """How many could not be made or prepared."""
    acquired: int
    """How many were acquired."""
    resets: int
    """How many resets there were."""
    sick: int
    """How many were not well when they were to be handed out, and were replaced."""
    deleted: int
    """How many were deleted."""
    timed_out: int
    """How many callers were told that their time was up."""
    waited: float
    """How long all that were acquired were waited for, together, in seconds."""
    waited_most: float
    """How long the one was waited for that was waited for the longest, in seconds."""
    last_error: str | None
    """Why the last of those that failed did."""


class PooledSandbox(Sandbox):
    """A sandbox of a pool, this caller's until the end of its ``with`` block, or ``delete``, or
    until it is dropped: then all that runs in it is killed, and the pool deletes it.

    ``reset`` puts another sandbox of the pool in its place, prepared as it was, with another name;
    what is asked of it by another thread meanwhile is ``SandboxDiedError``.
    """

    @property
    def files(self) -> Files:
        """Reads, writes and copies its files; after a reset, those of the other are others."""
        return Files(self._native.files({}))

    def __repr__(self) -> str:
        return f"<adl.PooledSandbox {self.name!r}>"


class Pool:
    """Sandboxes with one configuration that are ready before they are asked for.

    Threads of the pool make them, prepare them and delete them; ``acquire`` hands one over. One
    that was used is deleted, and never handed out again.

    ``minimum`` is how many there are at least, ready and in use together; ``maximum`` how many at
    most, those that are made among them; ``prefetch`` how many are kept ready beside those in use;
    ``threads`` how many are made at once, by default as many as there are processors. The other
    options are those of ``Sandbox``, but a name.

    ``prepare(sandbox)`` is called with each new one, in threads of the pool: to start a server in
    it, say. The sandbox is that function's for as long as it runs. One of which it raises is
    deleted, and another is tried after a pause. ``check(sandbox)`` says whether one is well, when
    it was prepared and when it is handed out; one that is not is replaced.

    Raises ``InvalidError`` for what is wrong with the options, and else as ``Sandbox``.

    >>> with adl.Pool("debian:12", prefetch=4, maximum=32) as pool:
    ...     with pool.acquire(timeout=10) as sandbox:
    ...         sandbox.run("true")
    """

    def __init__(
        self,
        image: Image | Snapshot | AnyHostPath | None = None,
        *,
        minimum: int = 0,
        maximum: int = 16,
        prefetch: int = 1,
        threads: int | None = None,
        prepare: Callable[[Sandbox], object] | None = None,
        check: Callable[[Sandbox], object] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        all_options: SandboxOptions = {"image": image, **options}
        sizes = {
            "minimum": minimum,
            "maximum": maximum,
            "prefetch": prefetch,
            "threads": threads,
        }
        self._native = _adl.Pool(
            _adl.Config(native_options(all_options)),
            sizes,
            _called("prepare", prepare),
            _called("check", check),
        )
        self._line = _Line(self._native)
        _living.add(self)

    def acquire(self, timeout: Seconds | None = None) -> PooledSandbox:
        """Takes a sandbox, which is ready: at once where the pool has one, else when one was made
        and it is this caller's turn. Who has asked first is the first.

        ``timeout`` is in seconds, by default there is none; with 0 that there is none is told at
        once. Raises ``TimedOutError``; ``PoolError`` if none can be made: at once, where the cause
        lasts, else when the time is up; ``PoolClosedError``.
        """
        return PooledSandbox._of(self._native.acquire(timeout))

    async def aacquire(self, timeout: Seconds | None = None) -> PooledSandbox:
        """Does what ``acquire`` does, from a coroutine, without a thread for each that waits."""
        within = None if timeout is None else _adl.seconds(timeout)
        return PooledSandbox._of(await self._line.wait(within))

    def stats(self) -> PoolStats:
        """What it has now, and has done until now."""
        return PoolStats(**self._native.stats())

    def close(self) -> None:
        """Ends the pool: all its sandboxes are deleted, those in use among them, whose users are
        told ``DeletedError``; all who wait are told ``PoolClosedError``.

        A pool that is dropped is closed, too. Raises ``TimedOutError`` where ``prepare`` does not
        return.
        """
        self._native.close()

    async def aclose(self) -> None:
        """Does what ``close`` does, from a coroutine."""
        await _async.in_own_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        stats = self._native.stats()
        return f"<adl.Pool idle={stats['idle']} in_use={stats['in_use']}>"


def _called(name: str, callback: Callable[[Sandbox], object] | None) -> Any:
    """What the pool calls, with a sandbox of the engine's."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"{name}: expected a callable, not {type(callback).__name__}")
    return lambda native: callback(Sandbox._of(native))


_GRACE = 0.2
"""How long after its deadline a coroutine is told that its time is up, if no one has told it why
by then: in seconds."""


class _Waiter:
    """A coroutine that waits for a sandbox."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[_adl.Sandbox] = self.loop.create_future()
        self.has_left = False

    def is_over(self) -> bool:
        return self.deadline is not None and self.deadline <= time.monotonic()

    def tell(self, told: _adl.Sandbox | Error) -> None:
        """Tells it from another thread. Where its loop is closed, no one has the sandbox: one that
        is dropped is given back."""
        try:
            self.loop.call_soon_threadsafe(self._tell, told)
        except RuntimeError:
            pass

    def _tell(self, told: _adl.Sandbox | Error) -> None:
        if self.future.done():
            return  # Cancelled meanwhile: a sandbox that is dropped is given back.
        if isinstance(told, Error):
            self.future.set_exception(told)
        else:
            self.future.set_result(told)

    def expire(self) -> None:
        self._tell(_late(self.timeout or 0.0))


def _late(after: float) -> TimedOutError:
    text = f"waited {after:g}s for a sandbox of the pool, and gave up"
    error = TimedOutError(text, what="a sandbox of the pool", after=after)
    error.kind = "temporary"
    return error


class _Line:
    """The coroutines that wait for a sandbox, in the order in which they came, and the one thread
    that stands in the pool's line for them. It is there while someone waits."""

    def __init__(self, pool: _adl.Pool) -> None:
        self._pool = pool
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()
        self._is_served = False

    async def wait(self, timeout: float | None) -> _adl.Sandbox:
        if self._pid != os.getpid():
            # A fork has not got the thread.
            self._begin()
        waiter = _Waiter(timeout)
        with self._lock:
            if timeout is not None and timeout <= 0 and self._waiting():
                raise _late(timeout)
            if not self._is_served:
                thread = threading.Thread(target=self._serve, name="adl-acquire", daemon=True)
                thread.start()
                self._is_served = True
            self._waiters.append(waiter)
        timer = None
        if timeout is not None:
            # No loop knows much longer ones.
            timer = waiter.loop.call_later(min(timeout, 1e8) + _GRACE, waiter.expire)
        try:
            return await waiter.future
        finally:
            waiter.has_left = True
            if timer is not None:
                timer.cancel()
            # An error that is told has this frame, and would have itself with it.
            del waiter, timer

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Waits for one sandbox; False when no one wants any. In a frame of its own, which keeps
        none of those that were handed over."""
        with self._lock:
            if not self._waiting():
                self._is_served = False
                return False
        told: _adl.Sandbox | Error
        try:
            told = self._pool.acquire_while(self._is_wanted)
        except Error as error:
            told = error
        with self._lock:
            waiting = self._waiting()
            if not isinstance(told, Error):
                # Whoever is first now. Where no one is, it is dropped, and so given back.
                who = [waiting.popleft()] if waiting else []
            elif told.kind == "temporary":
                # The time of all of them is up, or that of some, just now.
                who = [waiter for waiter in waiting if waiter.is_over()]
            else:
                who = list(waiting)
            for waiter in who:
                if waiter in waiting:
                    waiting.remove(waiter)
        for waiter in who:
            # How long each has waited, this line does not know.
            is_late = isinstance(told, TimedOutError) and waiter.timeout is not None
            waiter.tell(_late(waiter.timeout or 0.0) if is_late else told)
        return True

    def _is_wanted(self) -> bool:
        """Whether someone waits whose time is not up."""
        with self._lock:
            return any(not waiter.is_over() for waiter in self._waiting())

    def _waiting(self) -> deque[_Waiter]:
        """Those who wait still."""
        if any(waiter.has_left for waiter in self._waiters):
            self._waiters = deque(waiter for waiter in self._waiters if not waiter.has_left)
        return self._waiters


def _close_all() -> None:
    """Closes what no one has closed, at the end of the interpreter: its threads may need that."""
    for pool in list(_living):
        try:
            pool.close()
        except Error:
            pass  # There is no one to tell. A fork's are its parent's.


# Before sandboxes are ended, which a pool would make anew.
atexit.register(_close_all)
