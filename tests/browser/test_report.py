"""A report's page in a real Chromium, from a file, with nothing to ask anybody for."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from reports import bundle_with, full_report

from edgekit.build.rendering import Format, open_subject, render


@pytest.fixture
def address(tmp_path: Path) -> str:
    subject = open_subject(bundle_with(full_report(), tmp_path / "b.ekb"))
    page = tmp_path / "report.html"
    page.write_text(render(subject, Format.HTML))
    return page.as_uri()


def open_report(chromium: Browser, address: str, *, width: int = 1280, dark: bool = False) -> Page:
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(address)
    assert complaints == [address]  # the policy let style and script in, and nothing was asked for
    return page


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_its_window(chromium: Browser, address: str, width: int) -> None:
    page = open_report(chromium, address, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_style_follows_the_reader_s_light_or_dark(chromium: Browser, address: str) -> None:
    grounds = []
    for dark in (False, True):
        page = open_report(chromium, address, dark=dark)
        grounds.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        page.context.close()
    assert grounds == ["rgb(245, 246, 248)", "rgb(14, 17, 23)"]


def test_marks_lie_within_the_plot(chromium: Browser, address: str) -> None:
    page = open_report(chromium, address)
    area = page.locator(".plot .area").bounding_box()
    assert area is not None and area["width"] > 600 and area["height"] > 300
    circles = page.locator(".plot .mark circle")
    assert circles.count() == 18
    for box in (circle.bounding_box() for circle in circles.all()):
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        assert area["x"] <= x <= area["x"] + area["width"]
        assert area["y"] <= y <= area["y"] + area["height"]
    page.context.close()


def test_heading_sorts_by_its_column_and_back(chromium: Browser, address: str) -> None:
    page = open_report(chromium, address)
    cells = page.locator(".candidates tbody td:nth-child(6)")

    def ratios() -> list[str]:
        page.get_by_role("button", name="To float32").click()
        found: list[str] = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
        return found

    up = ratios()
    assert up[-2:] == ["", ""]  # what was not measured is neither least nor greatest
    assert up[:-2] == sorted(up[:-2], key=float)
    assert ratios() == [*up[-3::-1], "", ""]
    page.context.close()
