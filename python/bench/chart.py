"""Draws what `adl bench --compare --json` has measured, and prints it as a table in Markdown.

adl bench --compare --json > FILE
python bench/chart.py FILE --svg CHART
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

WHOLE = {
    "run_adl": "adl run",
    "run_bwrap": "bubblewrap",
    "run_crun": "crun",
    "run_runc": "runc",
}
"""Those that start a program as a whole process."""

CALLS = {
    "create": "create",
    "create_of_blank": "create with a blank",
    "acquire": "acquire of a pool",
    "exec_argv": "run `/bin/true`",
    "exec_probe": "run a program without libc",
    "write_5b": "write 5 bytes",
    "read_5b": "read 5 bytes",
    "reset_1": "reset",
    "reset_spare": "reset with a spare",
    "delete": "delete",
}
"""Calls of the library."""

Bar = tuple[str, list[float | None]]


def ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.3g} ms"


def svg(bars: Sequence[Bar], series: Sequence[tuple[str, str]]) -> str:
    """Bars beside each other for each name, as long as the logarithm of the time.

    ``bars`` have values in microseconds, one for each of ``series``, which are colors and names.
    """
    values = [value for _, some in bars for value in some if value is not None]
    least = 10 ** math.floor(math.log10(min(values)))
    most = 10 ** math.ceil(math.log10(max(values)))

    def x(value: float) -> float:
        return 190 + 430 * math.log10(value / least) / math.log10(most / least)

    step = 17 * len(series) + 10
    height = step * len(bars) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="720" height="{height}" fill="white"/>',
    ]
    tick = least
    while tick <= most:
        parts.append(
            f'<path d="M{x(tick):.0f} 30V{height - 24}" stroke="#ddd"/>'
            f'<text x="{x(tick):.0f}" y="{height - 8}" text-anchor="middle">'
            f"{tick / 1000:g} ms</text>"
        )
        tick *= 10
    for number, (color, name) in enumerate(series):
        at = 190 + 190 * number
        parts.append(
            f'<rect x="{at}" y="10" width="12" height="12" fill="{color}"/>'
            f'<text x="{at + 18}" y="21">{name}</text>'
        )
    for number, (name, some) in enumerate(bars):
        top = 36 + step * number
        middle = top + (step - 10) / 2 + 5
        parts.append(f'<text x="182" y="{middle:g}" text-anchor="end">{name}</text>')
        for row, (value, (color, _)) in enumerate(zip(some, series, strict=True)):
            if value is None:
                continue
            width = max(1.0, x(value) - 190)
            below = top + 17 * row
            parts.append(
                f'<rect x="190" y="{below}" width="{width:.0f}" height="15" fill="{color}"/>'
                f'<text x="{194 + width:.0f}" y="{below + 12}">{ms(value)}</text>'
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def bars_of(told: dict[str, Any]) -> list[Bar]:
    """Of whole processes first, then of calls beside those of agentdocker-lite."""

    def value(key: str) -> float | None:
        return float(told[key]["p50_us"]) if key in told else None

    whole = [(name, [value(key), None]) for key, name in WHOLE.items()]
    calls = [
        (name.replace("`", ""), [value(key), value(f"seed_{key}")]) for key, name in CALLS.items()
    ]
    return [(name, values) for name, values in whole + calls if values != [None, None]]


def table(told: dict[str, Any]) -> str:
    """What is measured, its median and 99th percentile, and the medians that stand beside it."""

    def times(row: dict[str, Any]) -> str:
        return f"{ms(row['p50_us'])} | {ms(row['p99_us'])}"

    lines = ["| | median | 99 % | beside it, median |", "|---|---|---|---|"]
    for key, name in (WHOLE | CALLS).items():
        if key not in told:
            continue
        row, beside = told[key], []
        if "host_spawn_p50_us" in row:
            beside.append(f"{ms(row['host_spawn_p50_us'])} spawned on the host")
        if f"seed_{key}" in told:
            beside.append(f"{ms(told[f'seed_{key}']['p50_us'])} agentdocker-lite")
        lines.append(f"| {name} | {times(row)} | {', '.join(beside)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", help="what `adl bench --compare --json` printed")
    parser.add_argument("--svg", help="where to draw the chart")
    args = parser.parse_args()
    with open(args.measured, encoding="utf-8") as file:
        told = json.load(file)
    if args.svg:
        series = [("#2a6", "adl, or who is named"), ("#bbb", "agentdocker-lite 0.0.1")]
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(svg(bars_of(told), series))
    print(table(told), end="")


if __name__ == "__main__":
    main()
