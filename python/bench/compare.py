"""Measures adl.compat beside agentdocker-lite 0.0.1, on one root file system, in one run.

    pip install adl agentdocker-lite==0.0.1
    unshare --mount python bench/compare.py ROOTFS --json FILE
    python bench/compare.py --from FILE --svg FILE

The first needs root, since agentdocker-lite does, measures, and writes what it has measured. Each
measures in processes of its own, in turns. agentdocker-lite tells the end of a command by
descriptor 3, which has to be the number of its pipe in the calling program, too: so it runs where
0 and 3 are free. First come the calls of agentdocker-lite's example one after another, again and
again, then each call alone, and then the example in many processes at once. Both print the tables,
in Markdown, and draw the chart, of the same numbers. With --check they fail where a row is slower
than agentdocker-lite. They also fail where a reset in the example, or a run alone, is not ten times
as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chart import Bar, ms, svg

ROWS = {
    "create": "create",
    "list": "run, by list: `/bin/true`",
    "string": "run, by string: `true`",
    "write": "write 5 bytes",
    "read": "read 5 bytes",
    "reset": "reset",
    "delete": "delete",
}
ALONE = ("list", "string", "write", "read")
"""What is called again and again: a reset follows something that is to be undone."""

Times = dict[str, list[float]]


def measure(which: str, rootfs: str, rounds: int, alone: bool) -> Times:
    """What each call takes, in microseconds: in turn, as in the example of agentdocker-lite's
    README, or each alone."""
    if which == "seed":
        from agentdocker_lite import Sandbox, SandboxConfig

        os.close(0)
    else:
        from adl.compat import Sandbox, SandboxConfig

    times: Times = defaultdict(list)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        times[what].append((time.perf_counter() - begin) * 1e6)

    def check(told: tuple[str, int], expected: str) -> None:
        assert told == (expected, 0), told

    def run_list(sandbox: Any) -> None:
        with timed("list"):
            told = sandbox.run(["/bin/true"])
        check(told, "")

    def run_string(sandbox: Any) -> None:
        with timed("string"):
            told = sandbox.run("true")
        check(told, "")

    def write(sandbox: Any) -> None:
        with timed("write"):
            sandbox.write_file("/workspace/file", "hello")

    def read(sandbox: Any) -> None:
        with timed("read"):
            text = sandbox.read_file("/workspace/file")
        assert text == "hello"

    calls = dict(zip(ALONE, (run_list, run_string, write, read), strict=True))
    for number in range(max(1, rounds // 20)):
        config = SandboxConfig(image=rootfs, working_dir="/workspace", net_isolate=True)
        with timed("create"):
            sandbox = Sandbox(config, name=f"compare-{os.getpid()}-{number}")
        if alone:
            for call in calls.values():
                for _ in range(20):
                    call(sandbox)
        else:
            for _ in range(20):
                for call in calls.values():
                    call(sandbox)
                with timed("reset"):
                    sandbox.reset()
        with timed("delete"):
            sandbox.delete()
    if alone:
        times = {what: some for what, some in times.items() if what in ALONE}
    return times


def worker(which: str, rootfs: str, rounds: int, alone: bool = False) -> subprocess.Popen[str]:
    """Measures in a process of its own."""
    args = [sys.executable, __file__, rootfs, "--rounds", str(rounds), "--worker", which]
    args += ["--alone"] * alone
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Times:
    text, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"a worker has failed: {process.args!r}")
    times: Times = json.loads(text)
    return times


def merged(all_times: list[Times]) -> Times:
    together: Times = defaultdict(list)
    for times in all_times:
        for what, some in times.items():
            together[what] += some
    return together


def summary(times: Times) -> dict[str, Any]:
    return {
        what: {"p50_us": statistics.median(some), "n": len(some)} for what, some in times.items()
    }


Row = tuple[str, str, float, float]


def rows(told: dict[str, Any]) -> list[Row]:
    """The key and the name of each row, and what it takes the one and the other."""
    return [
        (key, name, told["seed"][key]["p50_us"], told["ours"][key]["p50_us"])
        for key, name in ROWS.items()
        if key in told["ours"]
    ]


def table(title: str, told: dict[str, Any]) -> str:
    lines = [f"| {title} | agentdocker-lite | adl.compat | times as fast |", "|---|---|---|---|"]
    for _, name, one, two in rows(told):
        lines.append(f"| {name} | {ms(one)} | {ms(two)} | {one / two:.1f} |")
    if "took_s" in told:
        one, two = told["took_s"]["seed"], told["took_s"]["ours"]
        lines.append(f"| all of it | {one:.1f} s | {two:.1f} s | {one / two:.1f} |")
    return "\n".join(lines) + "\n"


def too_slow(told: dict[str, Any]) -> list[str]:
    """What is not as much faster as it has to be."""
    least = {("example", "reset"): 10, ("alone", "list"): 10, ("alone", "string"): 10}
    return [
        f"{name}, {part}: {one / two:.1f} times as fast, and not {least.get((part, key), 1)}"
        for part in ("example", "alone")
        for key, name, one, two in rows(told[part])
        if one / two < least.get((part, key), 1)
    ]


def chart(told: dict[str, Any]) -> str:
    alone = {key: (one, two) for key, _, one, two in rows(told["alone"])}
    bars: list[Bar] = [
        (name.replace("`", ""), [*alone.get(key, (one, two))])
        for key, name, one, two in rows(told["example"])
    ]
    return svg(bars, [("#bbb", "agentdocker-lite 0.0.1"), ("#2a6", "adl.compat")])


def compare(rootfs: str, rounds: int, workers: int) -> dict[str, Any]:
    """Measures both, in turns."""
    both = ("seed", "ours")
    turns: dict[tuple[str, str], list[Times]] = defaultdict(list)
    for _ in range(5):
        for part in ("example", "alone"):
            for which in both:
                measuring = worker(which, rootfs, max(20, rounds // 5), part == "alone")
                turns[part, which].append(result(measuring))
    told: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "kernel": os.uname().release, "rounds": rounds},
        **{
            part: {which: summary(merged(turns[part, which])) for which in both}
            for part in ("example", "alone")
        },
        "together": {"workers": workers, "took_s": {}},
    }
    for which in both:
        begin = time.perf_counter()
        running = [worker(which, rootfs, 20) for _ in range(workers)]
        told["together"][which] = summary(merged([result(one) for one in running]))
        told["together"]["took_s"][which] = time.perf_counter() - begin
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rootfs", nargs="?")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--json", help="where to write what was measured")
    parser.add_argument("--from", dest="measured", help="what was measured before")
    parser.add_argument("--svg", help="where to draw the chart")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args.rootfs, args.rounds, args.alone)))
        return

    if args.measured:
        with open(args.measured, encoding="utf-8") as file:
            told = json.load(file)
    elif args.rootfs:
        told = compare(args.rootfs, args.rounds, args.workers)
    else:
        parser.error("say a directory with a root file system, or --from")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)
    if args.svg:
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(chart(told))
    print(table("the example, median", told["example"]))
    print(table("each call alone, median", told["alone"]))
    print(table(f"{told['together']['workers']} workers at once, median", told["together"]), end="")
    slow = too_slow(told) if args.check else []
    if slow:
        sys.exit("\n".join(slow))


if __name__ == "__main__":
    main()
