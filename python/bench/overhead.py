"""Measures what Python adds to a call of the Rust library, side by side in one run.

    RUSTFLAGS="-C target-feature=-crt-static" cargo build --release --example overhead
    python bench/overhead.py [--runs 3000] [--json FILE]

A program that does nothing, without a libc, is run in a sandbox by `Sandbox.run` and by Rust's
`Command::output`, in turns of 50: so what else the machine does falls on both alike. Then workers,
each in a thread and with a sandbox of its own, run it: by a ThreadPoolExecutor, and by threads of
Rust's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adl

PROBE = "/tmp/probe"
TURN = 50


def elf() -> bytes:
    """An ELF header, one program header, and the instructions of exit(0)."""
    code = bytes([0xB8, 60, 0, 0, 0, 0x31, 0xFF, 0x0F, 0x05])  # mov eax, 60; xor edi, edi; syscall
    size = 120 + len(code)
    numbers = (2, 62, 1), (0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += b"".join(n.to_bytes(w, "little") for n, w in zip(numbers[0], (2, 2, 4), strict=True))
    widths = (8, 8, 8, 4, 2, 2, 2, 2, 2, 2)
    header += b"".join(n.to_bytes(w, "little") for n, w in zip(numbers[1], widths, strict=True))
    # PT_LOAD, readable and executable: all of the file, from 0x400000 on.
    load = (1, 4), (5, 4), (0, 8), (0x400000, 8), (0, 8), (size, 8), (size, 8), (0x1000, 8)
    return header + b"".join(n.to_bytes(w, "little") for n, w in load) + code


class Rust:
    """The other side, which measures when it is told to."""

    def __init__(self, program: Path, probe: Path) -> None:
        self.process = subprocess.Popen(
            [str(program), str(probe)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer: list[float] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0, self.process.returncode


def with_probe() -> adl.Sandbox:
    sandbox = adl.Sandbox()
    sandbox.files.write_bytes(PROBE, elf(), mode=0o755)
    return sandbox


def runs(sandbox: adl.Sandbox, number: int) -> list[float]:
    """What each of so many runs takes, in microseconds."""
    times = []
    for _ in range(number):
        begin = time.perf_counter()
        result = sandbox.run([PROBE])
        times.append((time.perf_counter() - begin) * 1e6)
        assert result.returncode == 0, result
    return times


@contextmanager
def sandboxes(number: int) -> Iterator[list[adl.Sandbox]]:
    made = [with_probe() for _ in range(number)]
    yield made
    for sandbox in made:
        sandbox.delete()


def workers(threads: int, runs_each: int) -> float:
    """How many runs a second so many threads make."""
    ready = threading.Barrier(threads + 1)

    def work(sandbox: adl.Sandbox) -> None:
        ready.wait()
        runs(sandbox, runs_each)

    with sandboxes(threads) as made, ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(work, sandbox) for sandbox in made]
        ready.wait()
        begin = time.perf_counter()
        for one in done:
            one.result()
        return threads * runs_each / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--runs-each", type=int, default=100, help="of each worker")
    parser.add_argument("--rounds", type=int, default=5, help="of each number of workers")
    parser.add_argument("--limit", type=float, help="fail above so many microseconds of overhead")
    parser.add_argument("--json")
    here = Path(__file__).resolve().parent.parent
    found = sorted(here.glob("target/**/release/examples/overhead"), key=os.path.getmtime)
    parser.add_argument("--rust", type=Path, default=found[-1] if found else None)
    args = parser.parse_args()
    if args.rust is None:
        parser.error("the side of Rust is not built: see the beginning of this program")

    with tempfile.NamedTemporaryFile() as probe:
        probe.write(elf())
        probe.flush()
        rust = Rust(args.rust, Path(probe.name))
        told = measure(rust, args)
        rust.end()
    if args.json:
        Path(args.json).write_text(json.dumps(told, indent=1) + "\n")
    if args.limit is not None and told["overhead_us"] > args.limit:
        sys.exit(f"more than {args.limit} us")


def measure(rust: Rust, args: argparse.Namespace) -> dict[str, Any]:
    ours, theirs = [], []
    with with_probe() as sandbox:
        runs(sandbox, TURN)
        rust.ask(f"run {TURN}")
        for _ in range(max(1, args.runs // TURN)):
            ours += runs(sandbox, TURN)
            theirs += rust.ask(f"run {TURN}")

    print("| `run` of a program without libc | Python | Rust | more |\n|---|---|---|---|")
    told: dict[str, Any] = {"runs": len(ours)}
    for name, pick in (
        ("least", min),
        ("p10", lambda times: statistics.quantiles(times, n=10)[0]),
        ("p50", statistics.median),
    ):
        one, two = pick(ours), pick(theirs)
        told[name] = {"python_us": one, "rust_us": two}
        print(f"| {name} | {one:.0f} us | {two:.0f} us | {one - two:.0f} us |")
    told["overhead_us"] = told["p50"]["python_us"] - told["p50"]["rust_us"]

    print("\n| workers | Python, runs/s | Rust, runs/s | of Rust's |\n|---|---|---|---|")
    told["workers"] = {}
    for number in args.workers:
        rates = [
            (workers(number, args.runs_each), rust.ask(f"workers {number} {args.runs_each}")[0])
            for _ in range(args.rounds)
        ]
        one, two = (statistics.median(side) for side in zip(*rates, strict=True))
        told["workers"][str(number)] = {"python": one, "rust": two}
        print(f"| {number} | {one:.0f} | {two:.0f} | {one / two:.0%} |")
    return told


if __name__ == "__main__":
    main()
