"""What was done is counted."""

from __future__ import annotations

import json
from pathlib import Path

import adl


def test_what_was_done_is_counted(state: Path) -> None:
    before = adl.metrics()
    with adl.Sandbox(state_directory=state) as sandbox:
        sandbox.run(["true"])
        sandbox.run(["sleep", "10"], timeout=0.1)
        sandbox.reset()
        alive = adl.metrics()
        assert alive["sandboxes"]["alive"] == before["sandboxes"]["alive"] + 1
    adl.finish_removals()
    after = adl.metrics()

    def more(part: str, name: str) -> int:
        return int(after[part][name]) - int(before[part][name])  # type: ignore[literal-required]

    assert (more("sandboxes", "created"), more("sandboxes", "deleted")) == (1, 1)
    assert (more("sandboxes", "resets"), more("sandboxes", "alive")) == (1, 0)
    assert (more("jobs", "started"), more("jobs", "running")) == (2, 0)
    ended = {
        name: count - before["jobs"]["ended"][name]
        for name, count in after["jobs"]["ended"].items()
    }
    assert {name: count for name, count in ended.items() if count} == {"exited": 1, "timed_out": 1}
    assert more("removals", "done") >= 2
    assert after["removals"]["waiting"] == 0
    json.dumps({name: value for name, value in after.items() if name != "pools"})


def test_pools_are_counted_until_they_are_closed(state: Path) -> None:
    before = adl.metrics()["pools"]
    with adl.Pool(maximum=2, state_directory=state) as pool:
        with pool.acquire():
            (told,) = (stats for stats in adl.metrics()["pools"] if stats not in before)
            assert told == pool.stats()
            assert (told.in_use, told.acquired) == (1, 1)
            assert told.waited >= told.waited_most >= 0.0
    assert len(adl.metrics()["pools"]) == len(before)
