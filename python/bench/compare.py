"""Measures adl.compat beside agentdocker-lite 0.0.1, on one root file system, in one run.

    pip install adl agentdocker-lite==0.0.1
    unshare --mount python bench/compare.py ROOTFS [--rounds 200] [--svg FILE]

It needs root, since agentdocker-lite does, and prints a table in Markdown. Each measures in
processes of its own, in turns. agentdocker-lite tells the end of a command by descriptor 3, which
has to be the number of its pipe in the calling program, too: so it runs where 0 and 3 are free.
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

ROWS = {
    "create": "create",
    "list": "run, by list: `/bin/true`",
    "string": "run, by string: `true`",
    "write": "write 5 bytes",
    "read": "read 5 bytes",
    "reset": "reset",
    "delete": "delete",
}
Times = dict[str, list[float]]


def measure(which: str, rootfs: str, rounds: int) -> Times:
    """What each call takes, in microseconds: the example of agentdocker-lite's README."""
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

    for number in range(max(1, rounds // 20)):
        config = SandboxConfig(image=rootfs, working_dir="/workspace", net_isolate=True)
        with timed("create"):
            sandbox = Sandbox(config, name=f"compare-{os.getpid()}-{number}")
        for _ in range(20):
            with timed("list"):
                told = sandbox.run(["/bin/true"])
            check(told, "")
            with timed("string"):
                told = sandbox.run("true")
            check(told, "")
            with timed("write"):
                sandbox.write_file("/workspace/file", "hello")
            with timed("read"):
                text = sandbox.read_file("/workspace/file")
            assert text == "hello"
            with timed("reset"):
                sandbox.reset()
        with timed("delete"):
            sandbox.delete()
    return times


def worker(which: str, rootfs: str, rounds: int) -> subprocess.Popen[str]:
    """Measures in a process of its own."""
    args = [sys.executable, __file__, rootfs, "--rounds", str(rounds), "--worker", which]
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


def ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.3g} ms"


def table(title: str, seed: Times, ours: Times) -> list[tuple[str, float, float]]:
    print(f"| {title} | agentdocker-lite | adl.compat | times as fast |\n|---|---|---|---|")
    rows = []
    for key, name in ROWS.items():
        one, two = statistics.median(seed[key]), statistics.median(ours[key])
        print(f"| {name} | {ms(one)} | {ms(two)} | {one / two:.1f} |")
        rows.append((name.replace("`", ""), one, two))
    return rows


def svg(rows: list[tuple[str, float, float]]) -> str:
    """Two bars for each row, as long as the logarithm of the time."""
    import math

    least = 10 ** math.floor(math.log10(min(min(one, two) for _, one, two in rows)))
    most = 10 ** math.ceil(math.log10(max(max(one, two) for _, one, two in rows)))

    def x(value: float) -> float:
        return 190 + 430 * math.log10(value / least) / math.log10(most / least)

    height = 44 * len(rows) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="720" height="{height}" fill="white"/>',
    ]
    tick = least
    while tick <= most:
        name = f"{tick / 1000:g} ms"
        parts.append(
            f'<path d="M{x(tick):.0f} 30V{height - 24}" stroke="#ddd"/>'
            f'<text x="{x(tick):.0f}" y="{height - 8}" text-anchor="middle">{name}</text>'
        )
        tick *= 10
    for color, name, at in (("#bbb", "agentdocker-lite 0.0.1", 190), ("#2a6", "adl.compat", 380)):
        parts.append(
            f'<rect x="{at}" y="10" width="12" height="12" fill="{color}"/>'
            f'<text x="{at + 18}" y="21">{name}</text>'
        )
    for number, (name, one, two) in enumerate(rows):
        top = 36 + 44 * number
        parts.append(f'<text x="182" y="{top + 22}" text-anchor="end">{name}</text>')
        for value, color, below in ((one, "#bbb", 0), (two, "#2a6", 17)):
            width = max(1.0, x(value) - 190)
            parts.append(
                f'<rect x="190" y="{top + below}" width="{width:.0f}" height="15" fill="{color}"/>'
                f'<text x="{194 + width:.0f}" y="{top + below + 12}">{ms(value)}</text>'
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rootfs")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--svg")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args.rootfs, args.rounds)))
        return

    turns: dict[str, list[Times]] = {"seed": [], "ours": []}
    for _ in range(5):
        for which, so_far in turns.items():
            so_far.append(result(worker(which, args.rootfs, max(20, args.rounds // 5))))
    rows = table("alone, median", merged(turns["seed"]), merged(turns["ours"]))
    if args.svg:
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(svg(rows))

    print()
    measured: dict[str, Any] = {}
    for which in turns:
        begin = time.perf_counter()
        running = [worker(which, args.rootfs, 20) for _ in range(args.workers)]
        measured[which] = (merged([result(one) for one in running]), time.perf_counter() - begin)
    (seed, seed_took), (ours, ours_took) = measured["seed"], measured["ours"]
    table(f"{args.workers} workers at once, median", seed, ours)
    print(f"| all of it | {seed_took:.1f} s | {ours_took:.1f} s | {seed_took / ours_took:.1f} |")


if __name__ == "__main__":
    main()
