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
        "floor_create": row(2000),
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
    assert "| create | 2.5 ms | 5 ms | 8 ms agentdocker-lite, 2 ms floor |" in done.stdout
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
    # adl run and bubblewrap, create and the two that stand beside it, run.
    assert len(bars) == 6
    assert bars[0] > bars[1]
    assert bars[4] < bars[2] < bars[3]


def test_what_more_sandboxes_cost_is_a_curve_and_the_rest_are_tables(tmp_path: Path) -> None:
    steps = [[250, 2000.0], [500, 2200.0], [750, 2100.0]]
    ratios = {"mounts_ratio": 1.02, "processes_ratio": 0.98, "descriptors_ratio": 1.104}
    told = {
        "create": row(2500),
        "alive_create": {**row(2100), "steps_p50_us": steps},
        "alive_delete": {**row(500), "steps_p50_us": [[250, 400.0], [750, 600.0]]},
        "flat_create": {**row(2000), **ratios},
        "throughput_2": {**row(6000), "per_second": 310.4, "of_the_best": 1.0, "of_the_floor": 0.9},
    }
    measured, drawn = tmp_path / "measured.json", tmp_path / "curve.svg"
    measured.write_text(json.dumps(told))
    command = [sys.executable, str(CHART), str(measured), "--curve", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| create | 2 ms | 1.02 x | 0.98 x | 1.10 x |" in done.stdout
    assert "| 2 | 310 | 1.00 | 0.90 |" in done.stdout
    root = ElementTree.fromstring(drawn.read_text())
    paths = root.iter("{http://www.w3.org/2000/svg}path")
    lines = [path.attrib["d"] for path in paths if path.attrib.get("fill") == "none"]
    create, delete = ([point.split() for point in line[1:].split("L")] for line in lines)
    assert len(create) == 3
    assert len(delete) == 2
    # More to the right, slower higher up; of those that are deleted, fewer are left each time.
    assert float(create[0][0]) < float(create[1][0])
    assert float(create[0][1]) > float(create[1][1])
    assert float(delete[0][0]) > float(delete[1][0])
