"""What the documents show runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import python

TOP = Path(__file__).resolve().parent.parent
DOCUMENTS = [TOP / "README.md", TOP.parent / "docs" / "python.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.name))
def test_the_blocks_of_a_document_run(state: Path, document: Path) -> None:
    """All of one, one after the other, as a reader would type them."""
    if not document.exists():
        pytest.skip(f"there is no {document}")
    blocks = document.read_text().split("```python\n")[1:]
    assert blocks
    python("\n".join(block.split("```")[0] for block in blocks))
