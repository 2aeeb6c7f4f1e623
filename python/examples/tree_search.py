"""A search over states of a file system: each state is a snapshot, each move a fork of one.

Which edits make the test pass? Each move is a shell command in a fork of the state before it; a
state is kept as a snapshot, which copies nothing, and is removed when no one holds it any more.

python examples/tree_search.py
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import adl

MOVES = [
    "echo 'def add(a, b): return a - b' > /work/add.py",
    "echo 'def add(a, b): return a + b' > /work/add.py",
    "echo 'def mul(a, b): return a * a' > /work/mul.py",
    "echo 'def mul(a, b): return a * b' > /work/mul.py",
    "rm -f /work/*.py",
]
TEST = """
import sys
sys.path.insert(0, "/work")
passed = 0
try:
    from add import add
    passed += 1 + (add(2, 3) == 5)
except ImportError:
    pass
try:
    from mul import mul
    passed += 1 + (mul(2, 3) == 6)
except ImportError:
    pass
print(passed)
"""


@dataclass(order=True)
class Node:
    """A state, the best of which come first."""

    cost: float
    path: list[str] = field(compare=False)
    state: adl.Snapshot = field(compare=False)


def expand(node: Node) -> Iterator[tuple[int, Node]]:
    """The states that one move leads to, each with its score."""
    for move in MOVES:
        with node.state.fork() as sandbox:
            sandbox.run(move, check=True, timeout=10)
            score = int(sandbox.run(["python3", "/test.py"], check=True, timeout=10).stdout)
            path = [*node.path, move]
            yield score, Node(len(path) - score, path, sandbox.snapshot())


def main() -> None:
    with adl.Sandbox() as sandbox:
        sandbox.files.makedirs("/work")
        sandbox.write_file("/test.py", TEST)
        frontier = [Node(0, [], sandbox.snapshot())]
    tried = 0
    while frontier:
        for score, node in expand(heapq.heappop(frontier)):
            tried += 1
            if score == 4:
                print(f"found after {tried} states:", *node.path, sep="\n  ")
                return
            heapq.heappush(frontier, node)


if __name__ == "__main__":
    main()
