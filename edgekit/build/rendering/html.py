"""A report as one HTML file: no outside references, light and dark, for a phone and for paper.

Invariant: every value is escaped by the template engine and control characters are spelled out; a
content security policy lets the browser apply this style and this script, and load nothing at all.
The page is well-formed XML, too.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgekit.build.rendering import figures
from edgekit.build.rendering.frontier import survey
from edgekit.build.rendering.plot import linear_axis, pareto_plot
from edgekit.build.rendering.rows import not_tried, rows_of
from edgekit.build.rendering.subject import Subject
from edgekit.build.rendering.table import held_out_line
from edgekit.build.report import Outcome
from edgekit_contract.errors import printable

__all__ = ["html_page"]

_TEMPLATES: Final = Path(__file__).parent / "templates"
_FIRST_NODES: Final = 20
"""Of the sensitive nodes, so many are shown at once; the rest is folded."""


def html_page(subject: Subject) -> str:
    """The whole page."""
    report = subject.report
    points = survey(report.candidates)
    rows = rows_of(report, points)
    style, script = _asset("report.css"), _asset("sort.js")
    sensitivity = report.sensitivity
    return _ENVIRONMENT.get_template("report.html").render(
        report=report,
        manifest=subject.manifest,
        digest=subject.digest,
        signers=subject.signers,
        rows=rows,
        numbers={row.index: row.number for row in rows},
        chosen=next((row for row in rows if row.candidate.outcome is Outcome.CHOSEN), None),
        baseline=report.candidates[0] if report.candidates else None,
        skipped=not_tried(report),
        plot=pareto_plot(points, max_drop=report.max_drop),
        held_out=held_out_line(report),
        has_screened=any(point.is_screened for point in points),
        largest_bytes=max((c.size_bytes or 0 for c in report.candidates), default=0),
        noise=linear_axis([node.noise_db for node in sensitivity]) if sensitivity else None,
        first_nodes=_FIRST_NODES,
        figures=figures,
        on_device=figures.has_device_times(report),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # ours, not a value


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script (CSP level 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _spelled(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


_ENVIRONMENT: Final = Environment(
    loader=PackageLoader("edgekit.build.rendering"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_spelled,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["percent"] = _percent
