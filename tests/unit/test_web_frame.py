"""Frames: what a page shows, as attributes and as differences."""

from __future__ import annotations

import pytest

from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Frame, cell, difference


def test_a_difference_holds_what_changed_and_no_more() -> None:
    old = Frame(cells={"a": "1", "b": cell("x", tone=Tone.GOOD)}, rows={"list": ("r", "s")})
    new = Frame(cells={"a": "1", "b": cell("x", tone=Tone.BAD)}, rows={"list": ("s", "r")})
    assert difference(old, old) == {}
    assert difference(old, new) == {
        "set": {"b": {"text": "x", "tone": "bad"}},
        "rows": {"list": ("s", "r")},
    }


def test_whatever_a_device_says_is_text_on_the_page() -> None:
    hostile = '"><script>alert(1)</script>'
    frame = Frame(cells={"a": cell(hostile, href=f"/devices/{hostile}"), hostile: hostile})
    for key in ("a", hostile):
        assert "<script>" not in str(frame.bind(key)) + str(frame.text(key))
    assert '"' not in str(frame.bind("a")).split('href="')[1][:-1]


def test_parts_become_the_attributes_that_the_script_sets() -> None:
    frame = Frame(
        cells={
            "badge": cell("Late", tone=Tone.WARN),
            "bar": cell(x=0.25, width=0.5),
            "age": cell(at=0.0),
            "gone": cell("x", show=False),
        }
    )
    assert 'data-tone="warn"' in frame.bind("badge")
    assert 'x="25.00%" width="50.00%"' in frame.bind("bar")
    assert 'datetime="1970-01-01T00:00:00Z"' in frame.bind("age")
    assert frame.text("age") == "1970-01-01T00:00:00Z"
    assert frame.bind("gone").endswith(" hidden")
    assert frame.bind("absent") == 'data-cell="absent"' and frame.text("absent") == ""


def test_a_part_that_no_page_knows_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="colour"):
        cell("x", colour="red")


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (display.milliseconds(0.1234), "0.12 ms"),
        (display.milliseconds(12.34), "12.3 ms"),
        (display.milliseconds(123.4), "123 ms"),
        (display.milliseconds(12_340), "12.3 s"),
        (display.milliseconds(None), "–"),
        (display.size(512), "512 B"),
        (display.size(65_000_000), "62.0 MiB"),
        (display.size(8 << 30), "8.0 GiB"),
        (display.duration(93_784), "1 d 2 h"),
        (display.duration(0), "0 s"),
        (display.count(1, "device"), "1 device"),
        (display.count(12_000, "device"), "12,000 devices"),
        (display.rate(0.25), "0.2/s"),
        (display.percent(61.7), "62%"),
    ],
)
def test_values_are_shown_with_their_units(shown: str, words: str) -> None:
    assert shown == words
