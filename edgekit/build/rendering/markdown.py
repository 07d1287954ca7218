"""A report as Markdown (GitHub's: CommonMark with tables), readable as it is in a terminal.

Invariant: a value is text or code, never markup: it cannot end a table's cell, nor begin a tag or a
link.
Sources: CommonMark 0.31 (2.4 backslash escapes, 6.1 code spans), GitHub Flavored Markdown 4.10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from edgekit.build.rendering import figures
from edgekit.build.rendering.frontier import Point, survey
from edgekit.build.rendering.plot import pareto_plot
from edgekit.build.rendering.rows import Row, Standing, not_tried, rows_of
from edgekit.build.rendering.subject import Subject
from edgekit.build.rendering.table import held_out_line, is_screened, marked_score
from edgekit.build.report import Report
from edgekit_contract.errors import printable

__all__ = ["markdown_page"]

_WIDTH: Final = 64
_HEIGHT: Final = 16
"""Of the plot, in letters."""
_MARKUP: Final = re.compile(r"([\\`*\[\]<>|~&!#])|(?<!\w)_|_(?!\w)")


def markdown_page(subject: Subject) -> str:
    """The whole page."""
    report = subject.report
    points = survey(report.candidates)
    rows = rows_of(report, points)
    sections = (
        _head(subject, rows),
        _candidates(report, rows),
        _plot(report, points, rows),
        _sensitivity(report),
        _errors(report),
        _model(report),
        _sizes(subject),
        _seconds(report),
        _provenance(subject),
    )
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section))) + "\n"


def _head(subject: Subject, rows: Sequence[Row]) -> Iterator[str]:
    report = subject.report
    yield f"# {_text(f'{report.name} {report.version} for {report.profile}')}"
    yield ""
    for row in rows:
        if row.standing is Standing.CHOSEN:
            yield f"Chosen: {_code(row.candidate.title)}, {_text(row.candidate.reason)}."
    yield _text(f"{figures.aim_text(report)}: {figures.measured_text(report)}") + "."
    signers = ", ".join(_code(keyid[:16]) for keyid in subject.signers)
    yield f"Not verified{f'; it says it is signed by {signers}' if signers else ', not signed'}."
    if report.remarks:
        yield ""
        yield from (f"- {_text(remark)}" for remark in report.remarks)


def _candidates(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    yield "## Candidates"
    yield ""
    on_device = figures.has_device_times(report)
    device = (_text(f"{report.profile} ms"),) if on_device else ()
    yield from _table(
        ("#", "recipe", _text(report.metric), "MB", "ms", "to float32", *device, "dB", "outcome"),
        (
            (
                str(row.number),
                _code(row.candidate.title),
                marked_score(report, row.candidate),
                figures.mb_text(row.candidate.size_bytes),
                figures.ms_text(row.candidate.latency),
                figures.ratio_text(row.candidate.latency),
                *((_device_time(row),) if on_device else ()),
                figures.db_text(row.candidate.closeness_db),
                _outcome(row),
            )
            for row in rows
        ),
        figures_at=(0, 2, 3, 4, 5, 6, 7) if on_device else (0, 2, 3, 4, 5, 6),
    )
    if any(is_screened(report, row.candidate) for row in rows):
        yield ""
        yield "A figure with ~ is of a few samples only."
    if told := held_out_line(report):
        yield ""
        yield f"{_text(told[0].upper() + told[1:])}."
    if skipped := not_tried(report):
        yield ""
        yield "Not tried:"
        yield ""
        for reason, recipes in skipped.items():
            yield f"- {_text(reason)}: {', '.join(map(_code, recipes))}"


def _device_time(row: Row) -> str:
    return _text(figures.device_text(row.candidate.estimate, row.candidate.figure))


def _outcome(row: Row) -> str:
    word = row.standing.value if row.standing is not Standing.BASELINE else "lost, baseline"
    if row.standing is Standing.FRONTIER:
        word = "lost, on the frontier"
    return word + (f": {_text(row.candidate.reason)}" if row.candidate.reason else "")


def _plot(report: Report, points: Sequence[Point], rows: Sequence[Row]) -> Iterator[str]:
    """The table's numbers where they belong; `.` is any other candidate, lines are the frontier."""
    plot = pareto_plot(points, max_drop=report.max_drop)
    if plot is None:
        return
    numbers = {row.index: row.number for row in rows}
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]

    def cell(x: float, y: float) -> tuple[int, int]:
        return round((1 - y) * (_HEIGHT - 1)), round(x * (_WIDTH - 1))

    for corner, next_corner in plot.steps:
        (top, left), (bottom, right) = cell(*corner), cell(*next_corner)
        for line in range(min(top, bottom), max(top, bottom) + 1):
            for column in range(left, right + 1):
                grid[line][column] = "-" if top == bottom else "|"
    for mark in sorted(plot.marks, key=lambda mark: mark.label is not None):
        line, column = cell(mark.x, mark.y)
        text = str(numbers[mark.point.index]) if mark.label else "."
        for place, letter in enumerate(text, start=min(column, _WIDTH - len(text))):
            grid[line][place] = letter
    yield "## Metric against latency"
    yield ""
    yield f"{_text(report.metric)} upward, latency as a part of float32's to the right; "
    yield "numbers are those of the table, dots the other candidates, lines the frontier."
    yield ""
    yield "```text"
    labels = {round((1 - tick.at) * (_HEIGHT - 1)): tick.text for tick in plot.y.ticks}
    width = max(len(text) for text in labels.values()) if labels else 0
    for line, letters in enumerate(grid):
        yield f"{labels.get(line, ''):>{width}} |{''.join(letters)}".rstrip()
    yield f"{'':>{width}} +{'-' * _WIDTH}"
    axis = [" "] * (_WIDTH + 8)
    for tick in plot.x.ticks:
        start = max(0, cell(tick.at, 0)[1] - len(tick.text) // 2)
        if all(letter == " " for letter in axis[max(0, start - 1) : start + len(tick.text) + 1]):
            axis[start : start + len(tick.text)] = tick.text
    yield f"{'':>{width}}  {''.join(axis)}".rstrip()
    yield "```"


def _sensitivity(report: Report) -> Iterator[str]:
    if not report.sensitivity:
        return
    yield "## Sensitive nodes"
    yield ""
    yield "Noise in the outputs, against their signal, when this node alone is quantized."
    yield ""
    yield from _table(
        ("node", "operator", "weights", "noise, dB", ""),
        (
            (
                _code(node.node),
                _text(node.operator),
                f"{node.parameters:,}",
                f"{node.noise_db:.1f}",
                "spared" if node.spared else "",
            )
            for node in report.sensitivity
        ),
        figures_at=(2, 3),
    )


def _errors(report: Report) -> Iterator[str]:
    if not report.errors:
        return
    yield "## Where it differs most from float32"
    yield ""
    yield from _table(
        ("sample", "label", "float32 says", "the variant says", "lead"),
        (
            (
                str(error.sample),
                str(error.label) if error.label is not None else "",
                _text(error.expected),
                _text(error.got),
                f"{error.margin:.4g}" if error.margin is not None else "",
            )
            for error in report.errors
        ),
        figures_at=(0, 1, 4),
    )


def _model(report: Report) -> Iterator[str]:
    model = report.model
    if model is None:
        return
    yield "## The model as given"
    yield ""
    yield f"- {figures.bytes_text(model.size_bytes)}, {model.parameters:,} weights" + (
        f", opset {model.opset}" if model.opset is not None else ""
    )
    for what, tensors in (("input", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            shape = _text(figures.shape_text(tensor.shape))
            yield f"- {what} {_code(tensor.name)}: {_text(tensor.dtype)}, {shape}"
    counted = ", ".join(
        f"{_text(name)} {count}" for name, count in figures.greatest_first(model.operators).items()
    )
    yield f"- operators: {counted}"
    if report.normalization:
        yield f"- normalization: {_text('; '.join(report.normalization))}"


def _sizes(subject: Subject) -> Iterator[str]:
    yield "## Sizes"
    yield ""
    yield from _table(
        ("what", "bytes"),
        [
            *(
                (f"weights as {_text(name)}", f"{size:,}")
                for name, size in figures.greatest_first(subject.report.sizes).items()
            ),
            *((_code(file.path), f"{file.size:,}") for file in subject.manifest.files),
        ],
        figures_at=(1,),
    )


def _seconds(report: Report) -> Iterator[str]:
    if not report.seconds:
        return
    yield "## Where the time went"
    yield ""
    yield from _table(
        ("stage", "seconds"),
        (
            (_text(name), f"{seconds:.1f}")
            for name, seconds in figures.greatest_first(report.seconds).items()
        ),
        figures_at=(1,),
    )


def _provenance(subject: Subject) -> Iterator[str]:
    report, origin = subject.report, subject.manifest.provenance
    yield "## Provenance"
    yield ""
    yield f"- bundle digest: {_code(subject.digest)}"
    yield f"- made from: {_code(origin.source_name)}, SHA-256 {_code(origin.source_sha256)}"
    if origin.git_commit:
        yield f"- Git commit: {_code(origin.git_commit)}"
    yield f"- recipe: {_code(origin.recipe)}"
    if origin.calibration_sha256:
        yield (
            f"- calibration: {report.calibration_samples:,} samples, "
            f"SHA-256 {_code(origin.calibration_sha256)}"
        )
    yield f"- runtime: {_text(report.runtime)}, threads: {report.threads}"
    tools = ", ".join(f"{_text(name)} {_text(version)}" for name, version in origin.tools.items())
    yield f"- tools: {tools}"


def _table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, figures_at: Sequence[int] = ()
) -> Iterator[str]:
    """Cells are Markdown already."""
    yield f"| {' | '.join(headers)} |"
    rule = ("--:" if at in figures_at else "---" for at in range(len(headers)))
    yield f"| {' | '.join(rule)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _text(value: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", printable(value))


def _code(value: str) -> str:
    """A code span; nothing is markup in it but the fence, and in a table the bar."""
    plain = printable(value).replace("|", r"\|")
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    space = " " if plain.startswith("`") or plain.endswith("`") or not plain else ""
    return f"{fence}{space}{plain}{space}{fence}"
