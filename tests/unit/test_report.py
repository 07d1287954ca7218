"""Reports as Markdown, HTML and JSON: whole, well-formed, and never markup from a value."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from bundles import null_bundle
from command_line import edgekit
from hypothesis import given
from hypothesis import strategies as st
from reports import (
    as_json,
    bundle_with,
    bundle_with_raw,
    candidate,
    full_report,
    score,
    small_report,
)

from edgekit.build.rendering import Format, Subject, open_subject, render
from edgekit.build.rendering.figures import rounded
from edgekit.build.rendering.frontier import frontier, survey
from edgekit.build.rendering.plot import linear_axis, log_axis, pareto_plot
from edgekit.build.rendering.rows import Standing, rows_of
from edgekit.build.rendering.table import frontier_line, headers, table_rows
from edgekit.build.report import ErrorSample, Estimate, Figure, NodeSensitivity, Outcome, Report
from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_converters.recipes.tuning import Tuning

HOSTILE = "<script>alert(1)</script>|`x`\n&\x1b[31m\u202e"
XHTML = "{http://www.w3.org/1999/xhtml}"


def subject(report: Report) -> Subject:
    bundle = null_bundle()
    return Subject(report=report, manifest=bundle.manifest, digest="d" * 64, signers=("k" * 64,))


def tree(report: Report) -> ET.Element:
    """The page as XML: a page that is not well-formed fails."""
    return ET.fromstring(render(subject(report), Format.HTML).partition("\n")[2])


def hostile_report() -> Report:
    return full_report(
        name=HOSTILE,
        measured_on=HOSTILE,
        metric=HOSTILE,
        remarks=(HOSTILE,),
        normalization=(HOSTILE,),
        sizes={HOSTILE: 3},
        seconds={HOSTILE: 1.0},
        candidates=(
            candidate(HOSTILE, 0.9, 1.0, outcome=Outcome.CHOSEN, reason=HOSTILE),
            candidate(HOSTILE, 0.8, 0.7, reason=HOSTILE, tuning=Tuning(spared=(HOSTILE,))),
            candidate(HOSTILE, outcome=Outcome.SKIPPED, reason=HOSTILE),
        ),
        sensitivity=(
            NodeSensitivity(
                node=HOSTILE, operator=HOSTILE, noise_db=-3.0, spared=True, parameters=1
            ),
        ),
        errors=(ErrorSample(sample=1, expected=HOSTILE, got=HOSTILE),),
    )


# The frontier and the plot


def test_frontier_is_what_nothing_beats_in_both() -> None:
    candidates = (
        candidate("float32", 0.99, 1.0),
        candidate("fast", 0.95, 0.3),
        candidate("beaten", 0.94, 0.4),
        candidate("twin of fast", 0.95, 0.3),
        candidate("slow and good", 0.995, 1.5),
        candidate("not timed", 0.999),
        candidate("failed", outcome=Outcome.FAILED),
    )
    best = [point.candidate.recipe for point in frontier(survey(candidates))]
    assert best == ["fast", "twin of fast", "float32", "slow and good"]
    assert frontier_line(small_report(candidates=candidates)).count(", 0.30)") == 2
    assert frontier_line(small_report(candidates=candidates[5:])) == ""


FIGURES = st.tuples(st.floats(-1, 1), st.floats(0.01, 100))


@given(st.lists(FIGURES, min_size=1, max_size=12))
def test_frontier_agrees_with_the_definition(figures: list[tuple[float, float]]) -> None:
    candidates = [candidate(str(n), m, ratio) for n, (m, ratio) in enumerate(figures)]
    points = survey(candidates)
    best = frontier(points)
    for point in points:
        mine = (point.score.value, point.latency.ratio)
        beaten = any(
            (p.score.value >= mine[0] and p.latency.ratio < mine[1])
            or (p.score.value > mine[0] and p.latency.ratio <= mine[1])
            for p in points
        )
        assert (point in best) is not beaten
    ratios = [point.latency.ratio for point in best]
    assert best and ratios == sorted(ratios)


def test_candidates_are_compared_on_what_the_choice_saw_alone() -> None:
    baseline = candidate("float32", 0.9, 1.0)
    only_seen = msgspec.structs.replace(candidate("b", 0.8, 0.5), held_out=None)
    assert [p.score.value for p in survey([baseline, only_seen])] == [0.9, 0.8]


@pytest.mark.parametrize("form", [Format.MD, Format.HTML])
def test_screened_figures_are_marked_and_those_held_out_have_a_line_of_their_own(
    form: Format,
) -> None:
    few = msgspec.structs.replace(score(0.7531), rows=64)
    candidates = (
        msgspec.structs.replace(candidate("float32", 0.9642, 1.0), held_out=score(0.9311)),
        msgspec.structs.replace(
            candidate("a", 0.9557, 0.5, outcome=Outcome.CHOSEN), held_out=score(0.9222)
        ),
        msgspec.structs.replace(candidate("b", 0.9, 0.5), score=few, held_out=None),
    )
    text = re.sub(r"<[^>]+>", "", render(subject(small_report(candidates=candidates)), form))
    table, line = text.split("eld out from the choice")
    assert re.search(r"0\.7531(?: \[[^]]*\])? ~", table) and "0.9557 ~" not in table
    assert "0.9642" in table and "0.9557" in table
    assert "0.9311" in line[:200] and "0.9222" in line[:200]


def test_what_was_screened_on_fewer_samples_beats_nothing() -> None:
    lucky = msgspec.structs.replace(score(1.0), rows=64)
    screened = msgspec.structs.replace(candidate("s", 1.0, 0.5), score=lucky, held_out=None)
    points = survey([candidate("float32", 0.9, 1.0), screened, candidate("slow", 0.8, 2.0)])
    assert [p.is_screened for p in points] == [False, True, False]
    assert frontier(points) == points[:1]
    drawn = tree(small_report(candidates=tuple(p.candidate for p in points)))
    hollow = [e for e in drawn.iter(f"{XHTML}g") if "screened" in e.attrib.get("class", "")]
    assert len(hollow) == 1


EXTREME = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, -1e300, 1e300, 5e-324]),
)


@given(st.lists(st.tuples(EXTREME, EXTREME), min_size=1, max_size=6), st.floats(0, 1))
def test_plot_keeps_to_its_area_whatever_the_figures(
    figures: list[tuple[float, float]], max_drop: float
) -> None:
    points = survey([candidate(str(n), m, ratio) for n, (m, ratio) in enumerate(figures)])
    plot = pareto_plot(points, max_drop=max_drop)
    if plot is None:
        return
    for mark in plot.marks:
        assert 0 <= mark.x <= 1 and 0 <= mark.y <= 1 and 0 < mark.radius < 20
    assert all(0 <= x <= 1 and 0 <= y <= 1 for corner in plot.steps for x, y in corner)
    for axis in (plot.x, plot.y):
        assert len(axis.ticks) <= 14
        assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in axis.ticks)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_linear_ticks_stand_where_their_numbers_are(values: list[float]) -> None:
    axis = linear_axis(values)
    assert axis.low < min(values) and axis.high > max(values)
    for tick in axis.ticks:
        tolerance = 1e-6 * max(1.0, abs(axis.low), abs(axis.high)) / (axis.high - axis.low)
        assert axis.at(float(tick.text)) == pytest.approx(tick.at, abs=tolerance)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
def test_logarithmic_ticks_stand_where_their_numbers_are(values: list[float]) -> None:
    axis = log_axis(values)
    assert 0 < axis.low < min(values) and axis.high > max(values)
    for tick in axis.ticks:
        at = math.log(float(tick.text) / axis.low) / math.log(axis.high / axis.low)
        assert at == pytest.approx(tick.at, abs=1e-6)


def test_variant_that_lost_everything_does_not_press_the_rest_together() -> None:
    points = survey(
        [
            candidate("float32", 0.99, 1.0),
            candidate("good", 0.985, 0.5),
            candidate("broken", 0.1, 0.4),
        ]
    )
    plot = pareto_plot(points, max_drop=0.01)
    assert plot is not None and plot.y.low > 0.9
    below = {mark.point.candidate.recipe: mark.is_below for mark in plot.marks}
    assert below == {"float32": False, "good": False, "broken": True}


def test_rows_put_what_matters_first() -> None:
    report = full_report()
    rows = rows_of(report, survey(report.candidates))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert [row.standing for row in rows[:2]] == [Standing.CHOSEN, Standing.BASELINE]
    assert rows[-1].standing is Standing.FAILED
    assert len(rows) == sum(c.outcome is not Outcome.SKIPPED for c in report.candidates)


# The pages


@pytest.mark.parametrize("kind", Format)
def test_every_candidate_appears_with_its_reason(kind: Format) -> None:
    report = full_report()
    page = render(subject(report), kind)
    for tried in report.candidates:
        assert tried.recipe in page
        assert tried.reason.replace("'", "&#39;" if kind is Format.HTML else "'") in page


@pytest.mark.parametrize("kind", Format)
@pytest.mark.parametrize("report", [small_report(), small_report(candidates=())], ids=["old", "0"])
def test_report_of_an_older_build_renders(kind: Format, report: Report) -> None:
    assert "tiny" in render(subject(report), kind)


def test_html_refers_to_nothing_outside_itself() -> None:
    page = render(subject(full_report()), Format.HTML)
    assert not re.search(r"""(?:src|href|action|srcset)\s*=|@import|url\(|<link|<iframe""", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/1999/xhtml"}
    policy = tree(full_report()).find(f".//{XHTML}meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None and policy.attrib["content"].startswith("default-src 'none';")


def test_html_is_well_formed_and_has_each_part() -> None:
    page = tree(full_report())
    headings = ["".join(h.itertext()) for h in page.iter(f"{XHTML}h2")]
    assert headings == [
        "Chosen", "Before you trust the figures", "Metric against latency", "Candidates",
        "Sensitive nodes", "Where it differs most from float32", "The model as given", "Sizes",
        "Where the time went", "Provenance",
    ]  # fmt: skip
    marks = [e for e in page.iter(f"{XHTML}g") if "mark" in e.attrib.get("class", "")]
    assert len(marks) == len(survey(full_report().candidates))
    assert "not verified" in "".join(page.itertext())
    ids = [e.attrib["id"] for e in page.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))


def test_html_shows_hostile_text_and_obeys_none_of_it() -> None:
    page = tree(hostile_report())
    scripts = list(page.iter(f"{XHTML}script"))
    assert len(scripts) == 1 and "alert" not in "".join(scripts[0].itertext())
    shown = "".join(page.itertext())
    assert "<script>alert(1)</script>" in shown
    assert "\x1b" not in shown and "\\x1b[31m\\u202e" in shown


def test_markdown_tables_keep_their_columns_whatever_a_cell_says() -> None:
    page = render(subject(hostile_report()), Format.MD)
    assert "\x1b" not in page and "\u202e" not in page
    outside_code = re.sub(r"`[^`\n]+`|``.+?``", "", page)
    assert "<script" not in outside_code.replace("\\<", "")
    widths = set()
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        lines = block.splitlines()
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(columns) == 1, block
        assert re.fullmatch(r"\|(?: -{2,3}:? \|)+", lines[1])
        widths |= columns
    assert widths == {9, 6, 3}  # candidates; nodes and errors; sizes and seconds


def test_markdown_plot_shows_the_numbers_of_the_table() -> None:
    page = render(subject(full_report()), Format.MD)
    drawn = page.partition("```text\n")[2].partition("```")[0]
    assert "1-" in drawn and "2-" in drawn and "." in drawn


def test_json_is_the_report_and_says_that_nothing_is_verified() -> None:
    report = full_report()
    shown = json.loads(render(subject(report), Format.JSON))
    assert shown["verified"] is False
    assert shown["report"] == as_json(report)
    assert shown["frontier"][0] == "int8-static/per-channel/s8s8/percentile"
    assert shown["provenance"]["recipe"] == "as-is"


def test_table_of_a_build_shows_what_the_search_changed() -> None:
    rows = table_rows(full_report())
    assert rows[3][0] == "int8-static/per-channel/s8s8/mse (corrected, 2 spared: 8724d50a)"
    assert rows[3][1:5] == ["0.9940 [0.986, 1.000]", "4.940", "4.797", "0.41 [0.40, 0.43]"]
    assert rows[7][1:5] == ["", "", "", ""]


# The command


def test_report_prints_markdown_and_says_that_nothing_is_verified(tmp_path: Path) -> None:
    answer = edgekit("report", bundle_with(full_report(), tmp_path / "b.ekb"))
    assert answer.code == 0 and answer.out.startswith("# efficientnet-lite0 2.1.0")
    assert "not verified" in answer.err


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (("--format", "html"), "<!DOCTYPE html>"),
        (("--format", "md"), "# "),
        (("--format", "json"), "{"),
        (("--json",), "{"),
    ],
)
def test_report_has_every_format(tmp_path: Path, words: tuple[str, ...], begins: str) -> None:
    bundle = bundle_with(full_report(), tmp_path / "b.ekb")
    assert edgekit("report", bundle, *words).out.startswith(begins)
    out = tmp_path / "out"
    answer = edgekit("report", bundle, *words, "-o", out)
    assert (answer.code, answer.out) == (0, "")
    assert out.read_text().startswith(begins)


def test_report_takes_the_format_from_the_name_of_the_file(tmp_path: Path) -> None:
    bundle = bundle_with(full_report(), tmp_path / "b.ekb")
    assert edgekit("report", bundle, "-o", tmp_path / "r.HTML").code == 0
    assert (tmp_path / "r.HTML").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "pdf"), "md, html, json"),
        (("-o", "r.docx"), "md, html, json"),
        (("-o", "absent/r.md"), "choose another"),
    ],
)
def test_wrong_format_or_place_is_wrong_usage(
    tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    answer = edgekit("report", bundle_with(small_report(), tmp_path / "b.ekb"), *words)
    assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1


def test_bundle_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="holds no report"):
        open_subject(null_bundle().write(tmp_path / "b.ekb"))
    with pytest.raises(Misused):
        open_subject(tmp_path / "absent.ekb")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b'{"name": 3}', b"[" * 5000])
def test_report_that_is_none_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(Refused, match="build the bundle again"):
        open_subject(bundle_with_raw(raw, tmp_path / "b.ekb"))


@pytest.mark.parametrize("size", [-1, 10**400])
def test_report_with_a_size_that_none_can_be_is_refused(tmp_path: Path, size: int) -> None:
    raw = as_json(small_report())
    raw["candidates"][0]["size_bytes"] = size
    with pytest.raises(Refused, match="size_bytes"):
        open_subject(bundle_with_raw(json.dumps(raw).encode(), tmp_path / "b.ekb"))


def test_report_over_its_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle_with(small_report(), tmp_path / "b.ekb")
    monkeypatch.setattr(limits, "MAX_REPORT_BYTES", 100)
    with pytest.raises(Refused, match="over a size"):
        open_subject(path)


@given(
    st.lists(
        st.tuples(EXTREME, EXTREME, st.integers(0, limits.MAX_JSON_INTEGER)), min_size=1, max_size=4
    ),
    st.lists(EXTREME, min_size=2, max_size=2),
    st.lists(EXTREME, min_size=2, max_size=2),
)
def test_pages_are_made_of_any_figures(
    figures: list[tuple[float, float, int]], noise_db: list[float], seconds: list[float]
) -> None:
    report = full_report(
        candidates=tuple(
            candidate(str(n), m, ratio, size_bytes=size)
            for n, (m, ratio, size) in enumerate(figures)
        ),
        sensitivity=tuple(
            NodeSensitivity(node="n", operator="o", noise_db=noise, spared=False, parameters=0)
            for noise in noise_db
        ),
        seconds=dict(zip("ab", seconds, strict=True)),
    )
    tree(report)
    assert render(subject(report), Format.MD)


def report_of_another_machine() -> Report:
    guess = Estimate(ms=41.0, low=28.0, high=60.0)
    figure = Figure(
        median_ms=37.25, low=37.0, high=37.5, p95_ms=40.0, rss_bytes=1 << 26, runs=90,
        device="kitchen", at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    first, second, *others = full_report().candidates
    return full_report(
        candidates=(
            msgspec.structs.replace(first, estimate=guess),
            msgspec.structs.replace(second, estimate=guess, figure=figure),
            *others,
        )
    )


def test_estimates_are_called_so_and_stand_beside_what_a_device_measured() -> None:
    report = report_of_another_machine()
    shown = {
        "table": "\n".join(" ".join(row) for row in (headers(report), *table_rows(report))),
        "markdown": render(subject(report), Format.MD),
    }
    for text in shown.values():
        assert "raspberry-pi-4 ms" in text
        assert "37.2 [37.0, 37.5] measured, about 41 [28, 60]".replace("[", "") in text.replace(
            "\\", ""
        ).replace("[", "")
    page = "".join(tree(report).itertext())
    assert "about 41" in page and "28 to 60" in page
    assert "measured, 37.0 to 37.5" in page and "estimated 41" in page


def test_report_of_this_machine_has_no_column_for_another() -> None:
    assert "raspberry-pi-4 ms" not in headers(full_report())
    assert "raspberry-pi-4 ms" not in render(subject(full_report()), Format.HTML)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.0, 2, "1200"),
        (144.4, 3, "144"),
        (9.96, 2, "10.0"),
        (0.0388, 2, "0.039"),
        (41.25, 3, "41.2"),
        (0.0, 2, "0"),
    ],
)
def test_rounded_figures_have_no_exponent(value: float, digits: int, text: str) -> None:
    assert rounded(value, digits) == text
