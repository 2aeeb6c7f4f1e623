"""What the package has done in this process, in numbers."""

from __future__ import annotations

import json
from typing import Any, TypedDict, cast

from adl import _adl
from adl._pool import PoolStats

__all__ = ["Metrics", "metrics"]


class Metrics(TypedDict):
    """What this process has now, and has done since it began.

    It is for metrics: a number that only grows can be a counter, the others are gauges. All but
    ``pools`` can be made into JSON as it is.
    """

    sandboxes: dict[str, Any]
    """``alive``, ``created``, ``deleted``, ``resets``, ``snapshots``; ``failed``: how many could
    not be created, by what has failed (``prepare``, ``root``, ``clone``, ``setup``, ``cgroups``,
    ``directory``, ``ready``)."""
    jobs: dict[str, Any]
    """Commands: ``running``, ``started``, ``not_started``, ``unwatched`` (no one has waited for
    them); ``ended``, by :class:`EndReason`."""
    spares: dict[str, int]
    """``ready``, ``made``, ``failed``, ``taken``."""
    blanks: dict[str, int]
    """Those of :func:`keep_blanks`: ``ready``, ``made``, ``taken``."""
    removals: dict[str, int]
    """What sandboxes have left on disk: ``waiting``, ``done``."""
    pools: list[PoolStats]
    """The pools that are not closed, the oldest first."""


def metrics() -> Metrics:
    """Counts what the package has in this process, and has done in it until now.

    Nothing waits for it. A fork of the process begins with zeros.
    """
    told: dict[str, Any] = json.loads(_adl.metrics())
    pools = told.pop("pools")
    for pool in pools:
        for name in ("waited", "waited_most"):
            pool[name] = pool[name]["secs"] + pool[name]["nanos"] / 1e9
    return cast(Metrics, {**told, "pools": [PoolStats(**pool) for pool in pools]})
