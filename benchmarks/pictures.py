"""The pictures of docs/quantization.md, drawn from a real build of the digits model.

python benchmarks/pictures.py --out docs      # writes pareto.svg, sensitivity.svg, ranges.svg
python benchmarks/pictures.py --short         # a short search, drawn and not kept, for CI
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import machine
import numpy as np
import onnx

from edgekit.build import BuildRequest, build
from edgekit.build.host import read_host
from edgekit.build.rendering.frontier import survey
from edgekit.build.rendering.plot import Axis, linear_axis, pareto_plot
from edgekit.build.report import NodeSensitivity, Report
from edgekit.demo.devices import small_profile
from edgekit_contract.profile import parse_profile
from edgekit_converters.calibration.estimators import OF_STATISTICS, Estimator, Range, estimate
from edgekit_converters.calibration.observer import observe
from edgekit_converters.calibration.statistics import Histogram
from edgekit_converters.quantization.selection import select_static

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 44
INK, QUIET, LINE, GOOD, BAD = "#1f2328", "#6b7280", "#d0d7de", "#0f7b3f", "#b45309"
COLORS = ("#1f2328", "#7c3aed", "#0f7b3f", "#b45309", "#0969da")
SAMPLES = 100


def text(x: float, y: float, words: str, *, anchor: str = "middle", color: str = QUIET) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{escape(words)}</text>"


def page(parts: Sequence[str], *, height: int = HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-size="12" '
        'font-family="system-ui, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def across(at: float) -> float:
    return LEFT + at * (WIDTH - LEFT - RIGHT)


def up(at: float) -> float:
    return HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM)


def axes(x: Axis, y: Axis, *, below: str, beside: str) -> list[str]:
    parts = [
        f'<path d="M{LEFT} {TOP}V{up(0):.1f}H{WIDTH - RIGHT}" fill="none" stroke="{LINE}"/>',
        text(across(0.5), HEIGHT - 8, below),
        f'<text transform="translate(14 {up(0.5):.1f}) rotate(-90)" text-anchor="middle" '
        f'fill="{QUIET}">{escape(beside)}</text>',
    ]
    parts += [text(across(tick.at), up(0) + 16, tick.text) for tick in x.ticks]
    parts += [text(LEFT - 6, up(tick.at) + 4, tick.text, anchor="end") for tick in y.ticks]
    return parts


def pareto(report: Report) -> str:
    plot = pareto_plot(survey(report.candidates), max_drop=report.max_drop)
    assert plot is not None
    parts = axes(
        plot.x, plot.y, below="time, as a part of float32's", beside=f"{report.metric}, selection"
    )
    if plot.allowed is not None:
        y = up(plot.allowed)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{BAD}" stroke-dasharray="4 4"/>'
        )
        parts.append(text(WIDTH - RIGHT, y - 5, "what may be lost", anchor="end", color=BAD))
    corners = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in plot.stairs)
    parts.append(f'<polyline points="{corners}" fill="none" stroke="{GOOD}"/>')
    for mark in plot.marks:
        point, fill = mark.point, "#ffffff" if mark.point.is_screened else LINE
        if mark.on_frontier:
            fill = GOOD
        if point.index == 0:
            fill = INK
        x, y = across(mark.x), up(mark.y)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{mark.radius:.1f}" fill="{fill}" '
            f'fill-opacity="0.8" stroke="{INK if point.is_chosen else QUIET}"/>'
        )
        if point.is_chosen or point.index == 0:
            words = "chosen: " + point.candidate.recipe if point.is_chosen else "float32"
            anchor = "start" if mark.x < 0.5 else "end"
            beside = mark.radius + 14 if point.is_chosen else -mark.radius - 5
            parts.append(text(x, y + beside, words, anchor=anchor, color=INK))
    return page(parts)


def sensitivity(nodes: Sequence[NodeSensitivity]) -> str:
    """A bar for each node: longer is worse."""
    shown = nodes[:12]
    height, left = 40 + 22 * len(shown), 150
    low = min(node.noise_db for node in shown) - 3
    high = max(node.noise_db for node in shown)
    title = "noise in the outputs when this node alone is quantized"
    parts = [text(left, 16, title, anchor="start")]
    for row, node in enumerate(shown):
        y = 26 + 22 * row
        length = (node.noise_db - low) / (high - low) * (WIDTH - left - 90)
        color = BAD if node.spared else GOOD
        told = f"{node.noise_db:.1f} dB" + (", spared" if node.spared else "")
        parts.append(text(left - 8, y + 12, node.node[-22:], anchor="end", color=INK))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="16" rx="2" fill="{color}"/>'
        )
        parts.append(text(left + length + 6, y + 12, told, anchor="start"))
    return page(parts, height=height)


def ranges(histogram: Histogram, found: dict[Estimator, Range]) -> str:
    """Values of one tensor, and where each estimator cuts."""
    counts, edges = histogram.counts_but_zeros, histogram.edges
    per_bar = max(1, len(counts) // 160)
    starts = range(0, len(counts), per_bar)
    bars = [(float(edges[i]), int(counts[i : i + per_bar].sum())) for i in starts]
    x = linear_axis([float(edges[0]), float(edges[-1])])
    y = linear_axis([0.0, math.log10(max(count for _, count in bars) + 1)])
    parts = axes(x, y, below="value of the activation", beside="how often, log10")
    width = (across(1) - across(0)) * per_bar * histogram.width / (x.high - x.low)
    for start, count in bars:
        top = up(y.at(math.log10(count + 1)))
        parts.append(
            f'<rect x="{across(x.at(start)):.1f}" y="{top:.1f}" '
            f'width="{max(width - 0.5, 0.5):.1f}" '
            f'height="{max(0.0, up(0) - top):.1f}" fill="{LINE}"/>'
        )
    for place, (estimator, one) in enumerate(found.items()):
        color = COLORS[place % len(COLORS)]
        for value in {one.low, one.high} - {0.0}:
            at = across(x.at(value))
            parts.append(f'<path d="M{at:.1f} {TOP}V{up(0):.1f}" stroke="{color}"/>')
        words = f"{estimator.value}: {one.low:.2f} to {one.high:.2f}"
        y_text = TOP + 14 + 16 * place
        parts.append(text(WIDTH - RIGHT - 6, y_text, words, anchor="end", color=color))
    return page(parts)


def widest_apart() -> tuple[str, Histogram, dict[Estimator, Range]]:
    """The tensor on which the estimators disagree most."""
    path = DIGITS / "digits.onnx"
    with np.load(DIGITS / "calibration.npz") as data:
        feeds = [{"image": image[None]} for image in data["image"][:SAMPLES]]
    tensors = select_static(onnx.load_model(path)).observed
    with tempfile.TemporaryDirectory() as scratch:
        seen = observe(path, tensors, feeds, threads=1, scratch=Path(scratch))
    found = {
        name: {e: one for e in OF_STATISTICS if (one := estimate(statistics, e)) is not None}
        for name, statistics in seen.items()
    }

    def spread(name: str) -> float:
        widths = [one.high - one.low for one in found[name].values()]
        return max(widths) / max(min(widths), 1e-9)

    name = max(found, key=spread)
    return name, seen[name].histogram, found[name]


def built(search_time_s: float) -> Report:
    with tempfile.TemporaryDirectory() as directory:
        made = build(
            BuildRequest(
                model=DIGITS / "digits.onnx",
                output=Path(directory),
                profiles=(parse_profile(small_profile(read_host()), source="pictures"),),
                name="digits",
                version="1.0",
                calibration=str(DIGITS / "calibration.npz"),
                validation=str(DIGITS / "validation.npz"),
                search_time_s=search_time_s,
            )
        )
    return made.built[0].report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    report = built(6.0 if asked.short else 60.0)
    tensor, histogram, found = widest_apart()
    drawn = {
        "pareto.svg": pareto(report),
        "ranges.svg": ranges(histogram, found),
    }
    if report.sensitivity:  # a short search has no time to rank
        drawn["sensitivity.svg"] = sensitivity(report.sensitivity)
    if asked.out is not None:
        for name, picture in drawn.items():
            (asked.out / name).write_text(picture)
    machine.emit(
        {
            "candidates": len(report.candidates),
            "chosen": report.chosen,
            "nodes": {node.node: round(node.noise_db, 1) for node in report.sensitivity},
            "tensor": tensor,
            "ranges": {e.value: [round(r.low, 3), round(r.high, 3)] for e, r in found.items()},
        }
    )


if __name__ == "__main__":
    main()
