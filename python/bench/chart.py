"""Draws what `adl bench --json` has measured, and prints it as tables in Markdown.

adl bench --compare flat alive throughput --json > FILE
python bench/chart.py FILE --svg CHART --curve CURVE
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

FLAT = {
    "flat_create": "create",
    "flat_create_of_blank": "create with a blank",
    "flat_run_adl": "adl run",
    "flat_run_bwrap": "bubblewrap",
    "flat_run_crun": "crun",
    "flat_run_runc": "runc",
    "flat_spawn": "spawn on the host",
}
"""What is measured with more of something on the machine."""

CURVES = {
    "alive_create": ("#2a6", "create"),
    "alive_create_16": ("#283", "create, by 16 processes"),
    "alive_job": ("#a52", "run `/bin/true`"),
    "alive_delete": ("#55c", "delete"),
}
"""What is measured as more and more sandboxes are alive."""

THREADS = (1, 2, 8, 32, 64)

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

    whole: list[Bar] = [(name, [value(key), None, None]) for key, name in WHOLE.items()]
    calls: list[Bar] = [
        (name.replace("`", ""), [value(key), value(f"seed_{key}"), value(f"floor_{key}")])
        for key, name in CALLS.items()
    ]
    return [(name, values) for name, values in whole + calls if any(values)]


def curve(told: dict[str, Any]) -> str:
    """Lines: how long each took, in the median, when so many were alive."""
    lines = {key: told[key]["steps_p50_us"] for key in CURVES if key in told}
    points = [point for some in lines.values() for point in some]
    most = max(count for count, _ in points)
    slowest = max(microseconds for _, microseconds in points)
    digit = 10 ** math.floor(math.log10(slowest))
    highest = math.ceil(slowest / digit) * digit

    def at(point: Sequence[float]) -> str:
        count, microseconds = point
        return f"{60 + 600 * count / most:.1f} {330 - 290 * microseconds / highest:.1f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="380" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="720" height="380" fill="white"/>',
    ]
    for tick in range(5):
        value = highest * tick / 4
        level = at((0, value)).split()[1]
        parts.append(
            f'<path d="M60 {level}H660" stroke="#ddd"/>'
            f'<text x="54" y="{level}" text-anchor="end">{ms(value)}</text>'
        )
        count = round(most * tick / 4)
        across = at((count, 0)).split()[0]
        parts.append(f'<text x="{across}" y="350" text-anchor="middle">{count:,}</text>')
    parts.append('<text x="360" y="372" text-anchor="middle">sandboxes alive</text>')
    at_name = 70
    for key, some in lines.items():
        color, name = CURVES[key][0], CURVES[key][1].replace("`", "")
        # The oldest are deleted first: what is left then is fewer each time.
        shown = [(most - count, value) for count, value in some] if key == "alive_delete" else some
        parts.append(
            f'<path d="M{"L".join(map(at, shown))}" fill="none" stroke="{color}" '
            'stroke-width="2"/>'
            f'<rect x="{at_name}" y="10" width="12" height="12" fill="{color}"/>'
            f'<text x="{at_name + 18}" y="21">{name}</text>'
        )
        at_name += 50 + 7 * len(name)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def table(told: dict[str, Any]) -> str:
    """What is measured, its median and 99th percentile, and the medians that stand beside it."""

    def times(row: dict[str, Any]) -> str:
        return f"{ms(row['p50_us'])} | {ms(row['p99_us'])}"

    lines = ["| | median | 99 % | beside it |", "|---|---|---|---|"]
    for key, name in (WHOLE | CALLS).items():
        if key not in told:
            continue
        row, beside = told[key], []
        if "host_spawn_p50_us" in row:
            beside.append(f"{ms(row['host_spawn_p50_us'])} spawned on the host")
        for beside_key, name_beside in (
            (f"seed_{key}", "agentdocker-lite"),
            (f"floor_{key}", "floor"),
        ):
            if beside_key in told:
                beside.append(f"{ms(told[beside_key]['p50_us'])} {name_beside}")
        lines.append(f"| {name} | {times(row)} | {', '.join(beside)} |")
    return "\n".join(lines) + "\n"


def flat_table(told: dict[str, Any]) -> str:
    """How many times as long each takes with more of something on the machine."""
    lines = [
        "| | quiet | 300 mounts more | 3,000 processes more | 16,000 descriptors more |",
        "|---|---|---|---|---|",
    ]
    for key, name in FLAT.items():
        if key in told:
            row = told[key]
            ratios = (row[f"{more}_ratio"] for more in ("mounts", "processes", "descriptors"))
            shown = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
            lines.append(f"| {name} | {ms(row['p50_us'])} | {shown} |")
    return "\n".join(lines) + "\n"


def throughput_table(told: dict[str, Any]) -> str:
    """Whole lives of sandboxes in a second, by so many threads."""
    lines = ["| threads | cycles a second | of the most | of the floor's |", "|---|---|---|---|"]
    for threads in THREADS:
        row = told.get(f"throughput_{threads}")
        if row:
            floor = f"{row['of_the_floor']:.2f}" if "of_the_floor" in row else ""
            shown = f"{row['per_second']:.0f} | {row['of_the_best']:.2f} | {floor}"
            lines.append(f"| {threads} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", help="what `adl bench --json` printed")
    parser.add_argument("--svg", help="where to draw what each call takes")
    parser.add_argument("--curve", help="where to draw what calls take as more are alive")
    args = parser.parse_args()
    with open(args.measured, encoding="utf-8") as file:
        told = json.load(file)
    if args.svg:
        series = [
            ("#2a6", "adl, or who is named"),
            ("#bbb", "agentdocker-lite 0.0.1"),
            ("#d94", "the kernel alone"),
        ]
        with open(args.svg, "w", encoding="utf-8") as file:
            file.write(svg(bars_of(told), series))
    if args.curve:
        with open(args.curve, "w", encoding="utf-8") as file:
            file.write(curve(told))
    print(table(told), end="")
    if any(key in told for key in FLAT):
        print("\n" + flat_table(told), end="")
    if any(f"throughput_{threads}" in told for threads in THREADS):
        print("\n" + throughput_table(told), end="")


if __name__ == "__main__":
    main()
