"""A pool of Ray actors, each with a sandbox of its own: on one machine, or on as many as Ray has.

pip install ray; python examples/ray_pool.py [ACTORS [TASKS]]

What is to be known of many machines is in docs/fleet.md.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import ray
from ray.util import ActorPool

import adl


class Worker:
    """A sandbox that is as new for each task."""

    def __init__(self) -> None:
        self.sandbox = adl.Sandbox(timeout=30, hostname="worker")

    def run(self, script: str) -> tuple[int, str]:
        self.sandbox.reset()
        result = self.sandbox.run(script, stderr=adl.STDOUT, keep_output=(4000, 4000))
        return result.returncode, result.stdout_text

    def pid(self) -> int:
        return os.getpid()


def main(actors: int = 4, tasks: int = 100) -> None:
    # On a cluster: ray.init(address="auto"), and `ray start --resources='{"sandbox": 64}'` there.
    ray.init(resources={"sandbox": actors}, include_dashboard=False, log_to_driver=False)
    # As many are placed on a machine as it has of this resource. One whose process or machine dies
    # is made anew, and what was asked of it is asked again.
    options: dict[str, Any] = {
        "resources": {"sandbox": 1},
        "max_restarts": -1,
        "max_task_retries": 3,
    }
    actor: Any = ray.remote(num_cpus=0, **options)(Worker)
    workers = [actor.remote() for _ in range(actors)]
    pool = ActorPool(workers)

    begin = time.perf_counter()
    scripts = [f"echo {number} > /task; cat /task" for number in range(tasks)]
    results = list(pool.map(lambda worker, script: worker.run.remote(script), scripts))
    assert results == [(0, f"{number}\n") for number in range(tasks)]
    seconds = time.perf_counter() - begin
    print(f"{tasks} tasks on {actors} actors: {tasks / seconds:.0f} a second")

    # The end of a process, or of a machine, is an actor anew.
    lost = ray.get(workers[0].pid.remote())
    os.kill(lost, 9)
    assert ray.get(workers[0].run.remote("echo again")) == (0, "again\n")
    assert ray.get(workers[0].pid.remote()) != lost
    print("an actor was lost, and is there again")
    ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
