"""The programs that draw what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

CHART = Path(__file__).parent.parent / "bench" / "chart.py"


def row(median: float) -> dict[str, float]:
    return {"p50_us": median, "p99_us": 2 * median, "min_us": median, "n": 3}


def test_a_chart_has_a_bar_for_each_row_and_a_table_names_it(tmp_path: Path) -> None:
    told = {
        "create": row(2500),
        "seed_create": row(8000),
        "exec_argv": {**row(700), "host_spawn_p50_us": 600},
        "run_adl": row(6000),
        "run_bwrap": row(4000),
        # What is in no table does no harm.
        "snapshot_1m": row(5),
    }
    measured, drawn = tmp_path / "measured.json", tmp_path / "chart.svg"
    measured.write_text(json.dumps(told))
    command = [sys.executable, str(CHART), str(measured), "--svg", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| create | 2.5 ms | 5 ms | 8 ms agentdocker-lite |" in done.stdout
    assert "| run `/bin/true` | 0.7 ms | 1.4 ms | 0.6 ms spawned on the host |" in done.stdout
    assert "runc" not in done.stdout
    assert "snapshot" not in done.stdout
    root = ElementTree.fromstring(drawn.read_text())
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("adl run", "bubblewrap", "create", "2.5 ms", "8 ms", "0.7 ms", "4 ms"):
        assert expected in texts, texts
    bars = [
        float(rect.attrib["width"])
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        if rect.attrib["height"] == "15"
    ]
    # adl run and bubblewrap, create and what stands beside it, run.
    assert len(bars) == 5
    assert bars[0] > bars[1]
    assert bars[2] < bars[3]
