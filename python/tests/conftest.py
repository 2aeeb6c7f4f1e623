"""What the tests stand on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import adl

SOON = 30.0
"""More seconds than a machine under load takes for anything here."""

IMAGES = ["host", *filter(None, [os.environ.get("ADL_TEST_IMAGE")])]
"""The host's programs, and where one is named a directory with a root file system."""


def within(condition: Callable[[], object], seconds: float = SOON) -> bool:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def python(script: str, *args: str, timeout: float = 120) -> str:
    """Runs a program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """A state directory of the tests' own, in which nothing is left at their end."""
    place = Path(tempfile.mkdtemp(prefix="adl-python-", dir="/var/tmp"))
    os.environ["ADL_STATE_DIR"] = str(place / "state")
    yield place / "state"
    adl.finish_removals()

    def is_empty() -> bool:
        # What other processes have left that were killed; of this one, nothing is collected.
        adl.collect_garbage()
        return not list((place / "state" / "sandboxes").glob("*"))

    assert within(is_empty), "left on disk"
    shutil.rmtree(place)


@pytest.fixture
def sandbox(state: Path) -> Iterator[adl.Sandbox]:
    """A sandbox on the programs of this machine."""
    with adl.Sandbox() as made:
        yield made


@pytest.fixture(params=IMAGES, ids=lambda image: "host" if image == "host" else "directory")
def image(request: pytest.FixtureRequest, state: Path) -> str:
    """Each of the images."""
    return str(request.param)


@pytest.fixture
def limited(state: Path) -> Iterator[adl.Sandbox]:
    """A sandbox with a limit, where this machine has cgroups for that."""
    try:
        made = adl.Sandbox(limits=adl.Limits(accounting=True))
    except adl.UnsupportedError as error:
        pytest.skip(str(error))
    with made:
        yield made
