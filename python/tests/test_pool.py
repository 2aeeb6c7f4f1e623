"""Pools: sandboxes that are ready before they are asked for."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import SOON, python, within

import adl
from adl import Pool, PooledSandbox, Sandbox


@pytest.fixture
def pool(state: Path) -> Iterator[Pool]:
    """A pool of four at most."""
    with Pool(maximum=4, minimum=2, env={"A": "1"}) as made:
        yield made


def test_a_sandbox_is_acquired_and_used_and_not_handed_out_again(pool: Pool) -> None:
    names = set()
    for _ in range(6):
        with pool.acquire(timeout=SOON) as sandbox:
            assert isinstance(sandbox, PooledSandbox)
            assert sandbox.run("echo $A; ls /used").stdout == b"1\n"
            sandbox.write_file("/used", "x")
            names.add(sandbox.name)
        assert sandbox.name in names
        for call in (sandbox.reset, lambda: sandbox.run("true"), lambda: sandbox.files):
            with pytest.raises(adl.DeletedError):
                call()
        assert not sandbox.is_alive
        sandbox.delete()
    assert len(names) == 6
    stats = pool.stats()
    assert (stats.acquired, stats.in_use) == (6, 0)
    assert stats.made >= 6
    assert stats.last_error is None
    assert within(lambda: pool.stats().idle >= 2)


def test_each_is_prepared_by_the_caller(state: Path) -> None:
    kept: list[Sandbox] = []

    def prepare(sandbox: Sandbox) -> None:
        sandbox.write_file("/prepared", sandbox.name)
        sandbox.run("touch /also", check=True)
        sandbox.background("sleep 1000")
        kept.append(sandbox)

    with Pool("host", prefetch=2, maximum=3, prepare=prepare) as pool:
        with pool.acquire(SOON) as sandbox, pool.acquire(SOON) as other:
            assert sandbox.read_file("/prepared") == sandbox.name.encode()
            assert other.files.exists("/also")
            assert len(sandbox.jobs()) == 1
            # It was its own for as long as it ran.
            with pytest.raises(adl.DeletedError):
                kept[0].run("true")
            before = sandbox.name
            sandbox.write_file("/mine", "x")
            sandbox.reset()
            assert sandbox.name != before
            assert sandbox.read_file("/prepared") == sandbox.name.encode()
            assert not sandbox.files.exists("/mine")
            assert pool.stats().resets == 1


def test_what_prepares_or_checks_may_refuse(state: Path) -> None:
    asked: list[str] = []
    raised = KeyError("of the caller")

    def fails(sandbox: Sandbox) -> None:
        asked.append(sandbox.name)
        raise raised

    with Pool(prepare=fails) as pool:
        assert within(lambda: pool.stats().failed > 0)
        with pytest.raises(adl.PoolError) as told:
            pool.acquire(timeout=0.5)
        assert isinstance(told.value.why, adl.PrepareError)
        assert told.value.why.why is raised
        assert "of the caller" in str(told.value)
        assert pool.stats().failed > 0
        assert "of the caller" in (pool.stats().last_error or "")
        # To ask never waits for a thread of the pool that waits for the interpreter.
        end, before = time.monotonic() + SOON, pool.stats().failed
        while pool.stats().failed == before and time.monotonic() < end:
            pass
        assert pool.stats().failed > before
    assert asked

    well = {"all": True}

    def check(sandbox: Sandbox) -> bool:
        return well["all"] or not sandbox.files.exists("/sick")

    with Pool(prefetch=1, maximum=2, check=check) as pool:
        with pool.acquire(SOON) as sandbox:
            assert sandbox.run("true").success

    def sick(sandbox: Sandbox) -> bool:
        raise ValueError

    with Pool(check=sick) as pool:
        assert within(lambda: pool.stats().failed > 0)
        with pytest.raises(adl.PoolError, match="not well"):
            pool.acquire(timeout=0.2)


def test_who_waits_is_told_when_there_is_one_or_none(state: Path) -> None:
    with Pool(maximum=1) as pool:
        sandbox = pool.acquire(SOON)
        for timeout in (0, 0.1):
            with pytest.raises(TimeoutError) as told:
                pool.acquire(timeout)
            assert isinstance(told.value, adl.TimedOutError)
        assert pool.stats().timed_out >= 2
        waiting: list[Sandbox] = []
        threads = [
            threading.Thread(target=lambda: waiting.append(pool.acquire(SOON))) for _ in range(2)
        ]
        threads[0].start()
        assert within(lambda: pool.stats().waiting == 1)
        sandbox.delete()
        threads[0].join(SOON)
        assert len(waiting) == 1
        # One that is dropped is given back.
        waiting.clear()
        gc.collect()
        threads[1].start()
        threads[1].join(SOON)
        assert len(waiting) == 1
        last = waiting[0]
    with pytest.raises(adl.DeletedError):
        last.run("true")
    with pytest.raises(adl.PoolClosedError, match="closed"):
        pool.acquire()
    with pytest.raises(adl.PoolClosedError, match="closed"):
        pool.acquire(0)
    pool.close()


def test_coroutines_wait_in_a_line_with_one_thread(state: Path) -> None:
    pool = Pool(maximum=3, prefetch=3)

    async def main() -> None:
        order: list[int] = []
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            async with await pool.aacquire(SOON * 4) as sandbox:
                order.append(number)
                assert (await sandbox.arun(["echo", "x"])).stdout == b"x\n"
                most = max(most, pool.stats().in_use)

        before = threading.active_count()
        tasks = [asyncio.ensure_future(one(number)) for number in range(60)]
        await asyncio.sleep(0)
        # This one, those for calls that block, and one that waits.
        assert threading.active_count() <= before + 5
        await asyncio.gather(*tasks)
        assert order == sorted(order)
        assert 1 < most <= 3

        held = [await pool.aacquire(SOON) for _ in range(3)]
        late = asyncio.ensure_future(pool.aacquire(0.2))
        gone = asyncio.ensure_future(pool.aacquire())
        next_ = asyncio.ensure_future(pool.aacquire(SOON))
        with pytest.raises(adl.TimedOutError):
            await late
        gone.cancel()
        held[0].delete()
        assert (await (await next_).arun("true")).success
        waiting = asyncio.ensure_future(pool.aacquire())
        await asyncio.sleep(0.01)
        await pool.aclose()
        with pytest.raises(adl.PoolClosedError):
            await waiting

    asyncio.run(main())


def test_threads_share_it(state: Path) -> None:
    with Pool(maximum=8, prefetch=8) as pool:

        def work(number: int) -> bytes:
            with pool.acquire(SOON * 4) as sandbox:
                return sandbox.run(["echo", str(number)]).stdout

        with ThreadPoolExecutor(32) as threads:
            outputs = list(threads.map(work, range(64)))
        assert outputs == [b"%d\n" % number for number in range(64)]
        assert pool.stats().acquired == 64


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"maximum": 0}, adl.InvalidError, "number of sandboxes"),
        ({"minimum": 3, "maximum": 2}, adl.InvalidError, "at least 3 and at most 2"),
        ({"minimum": -1}, ValueError, "minimum"),
        ({"maximum": "many"}, TypeError, "maximum"),
        ({"threads": 0}, adl.InvalidError, "threads"),
        ({"name": "a"}, adl.InvalidError, "leave it out"),
        ({"prepare": 5}, TypeError, "prepare: expected a callable, not int"),
        ({"check": "x"}, TypeError, "check: expected a callable, not str"),
        ({"no_such": 5}, TypeError, "no option .*no_such"),
        ({"image": "/no/such"}, FileNotFoundError, "/no/such"),
        ({"image": 5}, TypeError, "image: expected Image"),
    ],
)
def test_what_makes_no_sense_is_said(
    state: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Pool(**options)


def test_the_end_of_the_interpreter_closes_it(state: Path) -> None:
    script = """
import time, adl
def prepare(sandbox):
    sandbox.run("sleep 0.05", check=True)
pool = adl.Pool(prefetch=4, maximum=8, prepare=prepare)
sandbox = pool.acquire()
print(sandbox.init_pid)
"""
    begin = time.monotonic()
    init = Path(f"/proc/{int(python(script))}")
    assert within(lambda: not init.exists())
    assert time.monotonic() - begin < SOON


def test_an_interrupt_ends_the_wait_and_a_fork_is_refused(state: Path) -> None:
    script = """
import os, signal, threading
import adl
with adl.Pool(maximum=1) as pool:
    sandbox = pool.acquire()
    def interrupt():
        while pool.stats().waiting == 0:
            pass
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        pool.acquire(timeout=60)
    except KeyboardInterrupt:
        print("interrupted")
    print(sandbox.run("echo usable").stdout.decode().strip())
    pid = os.fork()
    if pid == 0:
        for call in (pool.acquire, lambda: sandbox.run("true")):
            try:
                call()
            except adl.ForkedProcessError:
                pass
            else:
                os._exit(1)
        del pool, sandbox
        os._exit(0)
    print(os.waitpid(pid, 0)[1], sandbox.run("true").success)
"""
    assert python(script).splitlines() == ["interrupted", "usable", "0 True"]


def test_a_spare_takes_the_place_in_a_reset(state: Path) -> None:
    taken = adl.metrics()["spares"]["taken"]
    with Sandbox(spare=True) as sandbox:
        for number in range(5):
            assert within(lambda: adl.metrics()["spares"]["ready"] >= 1)
            sandbox.write_file("/left", str(number))
            sandbox.reset()
            assert not sandbox.files.exists("/left")
    assert adl.metrics()["spares"]["taken"] - taken == 5
    with pytest.raises(TypeError, match="spare"):
        Sandbox(spare="x")  # type: ignore[arg-type]


def test_coroutines_stand_in_one_line_with_threads(state: Path) -> None:
    with Pool(maximum=1) as pool:
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                with pool.acquire(SOON):
                    stop.wait(0.7)

        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert within(lambda: pool.stats().waiting == 1)

        async def main() -> None:
            (await pool.aacquire(SOON)).delete()

        # Not behind all that come while it waits.
        begin = time.monotonic()
        asyncio.run(main())
        assert time.monotonic() - begin < SOON / 2
        stop.set()
        for thread in threads:
            thread.join(SOON)


def test_a_fork_with_a_coroutine_in_line_is_told_so(state: Path) -> None:
    script = """
import asyncio, os
import adl

async def main():
    pool = adl.Pool(maximum=1)
    held = pool.acquire()
    waiting = asyncio.create_task(pool.aacquire())
    while pool.stats().waiting == 0:
        await asyncio.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        asyncio.events._set_running_loop(None)
        try:
            asyncio.new_event_loop().run_until_complete(asyncio.wait_for(pool.aacquire(), 20))
        except adl.ForkedProcessError:
            os._exit(0)
        os._exit(1)
    print(os.waitpid(pid, 0)[1])
    held.delete()
    print((await (await waiting).arun("true")).success)
    pool.close()

asyncio.run(main())
"""
    assert python(script).splitlines() == ["0", "True"]


def test_an_interrupt_ends_the_wait_for_the_end_of_a_pool(state: Path) -> None:
    script = """
import os, signal, threading
import adl

begun, go_on = threading.Event(), threading.Event()

def prepare(_):
    begun.set()
    go_on.wait(60)

pool = adl.Pool(prepare=prepare)
begun.wait()
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    pool.close()
except KeyboardInterrupt:
    print("interrupted")
go_on.set()
pool.close()
print("closed")
"""
    assert python(script).splitlines() == ["interrupted", "closed"]


def test_a_sandbox_that_a_coroutine_drops_is_given_back(state: Path) -> None:
    with Pool(maximum=1) as pool:

        async def use() -> None:
            sandbox = await pool.aacquire(SOON)
            await asyncio.sleep(0.2)
            assert (await sandbox.arun("true")).success

        async def main() -> None:
            # Two of them wait while the first has it, and nothing else has.
            await asyncio.gather(use(), use(), use())
            with pytest.raises(adl.TimedOutError):
                async with await pool.aacquire(SOON):
                    await pool.aacquire(0.1)
            assert within(lambda: pool.stats().in_use == 0)

        gc.collect()
        gc.disable()
        try:
            asyncio.run(main())
        finally:
            gc.enable()


def test_a_coroutine_that_gives_up_leaves_the_line(state: Path) -> None:
    with Pool(maximum=1) as pool:
        held = pool.acquire(SOON)

        async def main() -> None:
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(pool.aacquire(), 0.05)
            waiting = asyncio.ensure_future(pool.aacquire(SOON))
            await asyncio.sleep(0)
            # Who would not wait at all is not in its way, and is told at once.
            with pytest.raises(adl.TimedOutError):
                pool.aacquire(0).send(None)
            waiting.cancel()
            for no_time in (-1, float("nan"), 1e300):
                with pytest.raises(ValueError, match="seconds"):
                    await pool.aacquire(no_time)

        asyncio.run(main())
        assert within(lambda: pool.stats().waiting == 0)
        made = pool.stats().made
        held.delete()
        # No one has taken the next one only to throw it away.
        with pool.acquire(SOON):
            assert pool.stats().made == made + 1
