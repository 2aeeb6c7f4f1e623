"""32 workers, each with a sandbox of its own that it resets after each task, and what each call
took.

python examples/workers.py [WORKERS [TASKS]]
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import adl

Times = defaultdict[str, list[float]]


@contextmanager
def timed(times: Times, what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    times[what].append((time.perf_counter() - begin) * 1000)


def worker(tasks: int) -> Callable[[int], Times]:
    def work(number: int) -> Times:
        times: Times = defaultdict(list)
        with timed(times, "create"):
            sandbox = adl.Sandbox()
        for task in range(tasks):
            with timed(times, "write"):
                sandbox.write_file("/task", f"{number} {task}\n")
            with timed(times, "run"):
                result = sandbox.run(["cat", "/task"])
            assert result.stdout == f"{number} {task}\n".encode()
            with timed(times, "reset"):
                sandbox.reset()
        with timed(times, "delete"):
            sandbox.delete()
        return times

    return work


def main(workers: int = 32, tasks: int = 20) -> None:
    begin = time.perf_counter()
    all_times: Times = defaultdict(list)
    with ThreadPoolExecutor(workers) as pool:
        for times in pool.map(worker(tasks), range(workers)):
            for what, some in times.items():
                all_times[what] += some
    seconds = time.perf_counter() - begin

    print(f"{'':8}{'calls':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}")
    for what, some in all_times.items():
        some.sort()
        p99 = some[min(len(some) - 1, len(some) * 99 // 100)]
        median = statistics.median(some)
        print(f"{what:8}{len(some):8}{median:10.2f}{p99:10.2f}{some[-1]:10.2f}")
    print(f"{workers} workers: {workers * tasks / seconds:.0f} tasks a second")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
