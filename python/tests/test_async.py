"""The same from coroutines, without a thread for each command."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from conftest import SOON, missing, python

import adl
from adl import PIPE, STDOUT, EndReason, Sandbox

Runner = Callable[[Coroutine[Any, Any, Any]], Any]


def module(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        missing(name, f"needs {name}")
    return importlib.import_module(name)


def _asyncio(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def _uvloop(main: Coroutine[Any, Any, Any]) -> Any:
    uvloop: Any = module("uvloop")
    return uvloop.run(main)


def _anyio(main: Coroutine[Any, Any, Any]) -> Any:
    anyio: Any = module("anyio")

    async def run() -> Any:
        return await main

    return anyio.run(run, backend="asyncio")


@pytest.fixture(params=[_asyncio, _uvloop, _anyio])
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


def test_arun_is_run(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        result = await sandbox.arun("cat; echo err >&2; exit 3", input="in\n", env={"A": "b"})
        assert (result.returncode, result.stdout, result.stderr) == (3, b"in\n", b"err\n")
        assert (await sandbox.arun(["echo", "x"], check=True)).stdout == b"x\n"
        assert (await sandbox.arun("echo a; echo b >&2", stderr=STDOUT)).stdout == b"a\nb\n"
        with pytest.raises(adl.CalledProcessError):
            await sandbox.arun("false", check=True)
        with pytest.raises(FileNotFoundError):
            await sandbox.arun(["no-such-program"])
        with pytest.raises(TypeError):
            await sandbox.arun(["true"], no_such=1)  # type: ignore[call-arg]
        big = os.urandom(1 << 20)
        assert (await sandbox.arun(["cat"], input=big)).stdout == big
        timed = await sandbox.arun("echo a; sleep 1000", timeout=0.2)
        assert (timed.reason, timed.stdout) == (EndReason.TIMED_OUT, b"a\n")
        idle = await sandbox.arun("echo a; sleep 1000", idle_timeout=0.2)
        assert idle.reason is EndReason.IDLE
        left = await sandbox.arun("sleep 1000 & echo a")
        assert (left.stdout, left.stdio_open) == (b"a\n", True)

    run(main())


def test_a_cancelled_task_ends_its_command(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(sandbox.arun("touch /tmp/begun; setsid sleep 1000; true"))
        while not await sandbox.afiles.exists("/tmp/begun"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await sandbox.arun("cat /proc/[0-9]*/comm | grep -c sleep")).stdout == b"0\n"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sandbox.arun("sleep 1000"), 0.1)

    run(main())


THOUSAND = """
import asyncio, os, sys
import adl

most = 0

async def main():
    async def one(number):
        sandbox = sandboxes[number % len(sandboxes)]
        return (await sandbox.arun(f"sleep 0.1; echo {number}")).stdout

    async def watch():
        global most
        while True:
            most = max(most, len(os.listdir("/proc/self/task")))
            await asyncio.sleep(0.005)

    sandboxes = await asyncio.gather(*(adl.Sandbox.create() for _ in range(8)))
    watching = asyncio.ensure_future(watch())
    outputs = await asyncio.gather(*(one(number) for number in range(1000)))
    watching.cancel()
    assert outputs == [b"%d\\n" % number for number in range(1000)]
    await asyncio.gather(*(sandbox.adelete() for sandbox in sandboxes))

if sys.argv[1] == "asyncio":
    asyncio.run(main())
elif sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    import anyio
    anyio.run(main, backend="asyncio")
print(most)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "anyio"])
def test_a_thousand_at_once_take_at_most_eight_threads(state: Path, loop: str) -> None:
    if loop != "asyncio":
        module(loop)
    # All threads of a process that does nothing else, those of the library among them.
    assert 1 <= int(python(THOUSAND, loop, timeout=10 * SOON)) <= 8


def test_other_tasks_run_while_calls_wait(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        large = b"x" * (8 << 20)
        for wait in (
            lambda: sandbox.arun("sleep 0.2"),
            lambda: sandbox.afiles.write_bytes("/f", large),
            lambda: sandbox.afiles.read_bytes("/f"),
            sandbox.areset,
        ):
            before = ticks
            await wait()
            # At least the one that was due when it began to wait.
            assert ticks > before
        ticking.cancel()

    run(main())


def test_a_process_is_talked_to(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        process = await sandbox.apopen(["cat"], stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        await process.stdin.drain()
        assert await process.stdout.readline() == b"one\n"
        assert process.returncode is None
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.wait() == 0
        assert process.returncode == 0

        lines = []
        script = "for i in 1 2 3; do echo $i; sleep 0.02; done; exit 4"
        async with await sandbox.apopen(script, stdout=PIPE) as process:
            assert process.stdout is not None
            async for line in process.stdout:
                lines.append(line)
            assert await process.wait() == 4
        assert lines == [b"1\n", b"2\n", b"3\n"]

        process = await sandbox.apopen("cat; echo e >&2", stdin=PIPE, stdout=PIPE, stderr=PIPE)
        data = os.urandom(1 << 20)
        assert await process.communicate(data) == (data, b"e\n")

        async with await sandbox.apopen("sleep 1000") as process:
            waiting = asyncio.gather(process.wait(), process.wait())
            process.terminate()
            assert set(await waiting) == {-15}
        async with await sandbox.apopen("setsid sleep 1000 & sleep 1000") as process:
            pass
        assert process.returncode == -9
        with pytest.raises(adl.InvalidError, match="popen"):
            await sandbox.apopen("true", idle_timeout=1)

    run(main())


def terminals() -> list[str]:
    """The terminals of others that this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # That of the list itself.
    return [path for path in found if path.endswith("ptmx")]


def test_a_terminal_is_talked_to(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        script = "trap 'stty size' WINCH; tty; stty size; read line; echo got $line; exit 3"
        async with await sandbox.apopen(script, terminal=(24, 80)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is None
            assert (await process.stdout.readline()).startswith(b"/dev/pts/")
            assert await process.stdout.readline() == b"24 80\r\n"
            assert terminals() != []
            process.resize(30, 100)
            process.stdin.write(b"typed\n")
            await process.stdin.drain()
            # What is left of it, and its end, which is no error.
            text = await asyncio.wait_for(process.stdout.read(), SOON)
            assert text.endswith(b"got typed\r\n"), text
            assert b"30 100\r\n" in text
            assert await process.wait() == 3

        process = await sandbox.apopen("tty; echo printed", terminal=(24, 80))
        out, err = await process.communicate()
        assert out is not None
        assert out.endswith(b"printed\r\n")
        assert err is None
        async with await sandbox.apopen("sleep 1000", terminal=(24, 80)) as process:
            assert process.stdin is not None
            process.stdin.write(b"\x03")
            assert await asyncio.wait_for(process.wait(), SOON) == -2
        with pytest.raises(adl.InvalidError, match="terminal"):
            await sandbox.apopen("true", terminal=(24, 80), stdout=PIPE)
        process = await sandbox.apopen("true")
        with pytest.raises(adl.InvalidError, match="terminal"):
            process.resize(1, 1)
        await process.wait()

    run(main())
    gc.collect()
    assert terminals() == []


def test_the_whole_life_from_coroutines(state: Path, run: Runner) -> None:
    async def main() -> None:
        async with await Sandbox.create(env={"A": "1"}) as sandbox:
            files = sandbox.afiles
            await files.makedirs("/d/e")
            await files.write_text("/d/f", "text")
            assert await files.read_text("/d/f") == "text"
            assert await files.read_bytes("/d/f", offset=2) == b"xt"
            assert sorted(await files.listdir("/d")) == ["e", "f"]
            await files.rename("/d/f", "/d/g")
            assert (await files.stat("/d/g")).st_size == 4
            snapshot = await sandbox.asnapshot()
            async with snapshot.fork() as fork:
                assert (await fork.arun("cat /d/g; echo $A")).stdout == b"text1\n"
            fork = await sandbox.afork()
            await fork.adelete()
            await files.remove("/d/g")
            await files.rmtree("/d")
            assert not await files.exists("/d")
            with pytest.raises(FileNotFoundError):
                await files.read_bytes("/d")
            await sandbox.areset()
        assert not sandbox.is_alive

    run(main())


def test_the_end_of_the_sandbox_ends_a_wait(state: Path, run: Runner) -> None:
    async def main() -> None:
        sandbox = await Sandbox.create()
        running = asyncio.ensure_future(sandbox.arun("sleep 1000"))
        process = await sandbox.apopen("sleep 1000")
        await asyncio.sleep(0.1)
        await sandbox.adelete()
        assert (await asyncio.wait_for(running, SOON)).reason is EndReason.SANDBOX_DIED
        assert await asyncio.wait_for(process.wait(), SOON) == -9

    run(main())


def test_a_fork_of_the_program_does_not_keep_a_loop_busy(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork has the other copy of each descriptor, which closing ours leaves open."""
    from adl import _async

    steps = 0
    advance = _async._Watch._advance

    def counted(watch: _async._Watch) -> None:
        nonlocal steps
        steps += 1
        advance(watch)

    monkeypatch.setattr(_async._Watch, "_advance", counted)

    async def main() -> int:
        wait = "while ! [ -e /tmp/go ]; do sleep 0.01; done"
        script = f"touch /tmp/begun; {wait}; exec >&- 2>&-; touch /tmp/closed; exec sleep 1000"
        task = asyncio.ensure_future(sandbox.arun(script, timeout=SOON))
        while not await sandbox.afiles.exists("/tmp/begun"):
            await asyncio.sleep(0.01)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        await sandbox.afiles.write_bytes("/tmp/go", b"")
        while not await sandbox.afiles.exists("/tmp/closed"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        before = steps
        await asyncio.sleep(0.5)
        after = steps
        os.close(write)
        os.waitpid(child, 0)
        task.cancel()
        await asyncio.wait([task])
        return after - before

    assert asyncio.run(main()) < 20
    assert threading.active_count() < 10


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def running(sandbox: Sandbox, what: str) -> int:
    found = sandbox.run(["pgrep", "-f", "-x", what]).stdout_text
    return len(found.split())


def test_a_process_that_is_dropped_leaves_its_number_to_others(
    sandbox: Sandbox, run: Runner
) -> None:
    async def main() -> None:
        for _ in range(3):
            for _ in range(20):
                await sandbox.apopen(["sleep", "77"])
            gc.collect()
            # What is opened now has the numbers of what the dropped ones had open.
            runs = (sandbox.arun(f"echo {number}") for number in range(40))
            results = await asyncio.wait_for(asyncio.gather(*runs), SOON)
            assert [int(result.stdout) for result in results] == list(range(40))
        # They run on, but for one that was to end when it is dropped.
        assert running(sandbox, "sleep 77") == 60
        await sandbox.apopen(["sleep", "88"], kill_on_drop=True)
        gc.collect()
        deadline = time.monotonic() + SOON
        while running(sandbox, "sleep 88"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        sandbox.kill_all()

    run(main())


def test_a_start_that_is_cancelled_leaves_nothing(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        await sandbox.arun("true")
        before = descriptors()
        kept: list[Any] = []
        cancelled = 0
        for number in range(60):
            start = sandbox.apopen(["sleep", "77"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
            task = asyncio.ensure_future(start)
            await asyncio.sleep(number % 12 / 4000)
            if task.done():
                kept.append(task.result())
                continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled += 1
        assert cancelled
        deadline = time.monotonic() + SOON
        while running(sandbox, "sleep 77") != len(kept):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        while kept:
            async with kept.pop():
                pass
        del task
        gc.collect()
        while descriptors() > before:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    run(main())


def test_hundreds_of_commands_of_one_sandbox_start_at_once(sandbox: Sandbox, run: Runner) -> None:
    async def main() -> None:
        results = await asyncio.gather(*(sandbox.arun(f"echo {n}") for n in range(300)))
        assert [int(result.stdout) for result in results] == list(range(300))

    run(main())


def test_who_talks_to_a_command_that_has_ended_is_told_its_end(
    sandbox: Sandbox, run: Runner
) -> None:
    async def main() -> None:
        for _ in range(5):
            process = await sandbox.apopen(["true"], stdin=PIPE, stdout=PIPE)
            await process.wait()
            assert await process.communicate(b"x" * 10) == (b"", None)

    run(main())
