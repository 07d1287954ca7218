"""A real Chromium against the real dashboard. Whatever it complains of fails the test.

Pictures go to the directory that EDGEKIT_SCREENSHOTS names, else to `screenshots` below pytest's
temporary directory: those that tests take, and the last sight of each page of a test that fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from parts import need
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright
from stage import Curtain

ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
WAIT_MS = 20_000
SETTLED = "#pulse[data-tone=good], body[data-section='']"
"""What a page has that is live, or that leads nowhere."""
expect.set_options(timeout=WAIT_MS)

OpenPage = Callable[..., Page]
TakePicture = Callable[[Page, str], Path]
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    named = os.environ.get("EDGEKIT_SCREENSHOTS")
    directory = Path(named) if named else tmp_path_factory.getbasetemp() / "screenshots"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def take_picture(screenshots: Path) -> TakePicture:
    """Takes a picture of what is in sight, which must be more than a blank page."""

    def taken(page: Page, name: str) -> Path:
        path = screenshots / f"{name}.png"
        page.screenshot(path=path)
        with Image.open(path) as image:
            assert page.viewport_size is not None
            assert image.size == (page.viewport_size["width"], page.viewport_size["height"])
            colours = image.convert("RGB").getcolors(1 << 22)
            assert colours is not None and len(colours) > 50, f"{path} is all but blank"
        return path

    return taken


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def curtain() -> Iterator[Curtain]:
    with Curtain() as running:
        yield running


@pytest.fixture
def open_page(
    chromium: Browser, screenshots: Path, request: pytest.FixtureRequest
) -> Iterator[OpenPage]:
    """Opens a page; afterwards, complaints of the browser and requests elsewhere are failures."""
    complaints: list[str] = []
    pages: list[Page] = []
    with ExitStack() as stack:

        def opened(
            address: str,
            *,
            width: int = 1280,
            height: int = 800,
            dark: bool = False,
            still: bool = True,
            expected: Sequence[str] = (),
        ) -> Page:
            """`expected`: words of the complaints that the test provokes."""
            context = chromium.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce" if still else "no-preference",
            )
            stack.callback(context.close)
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            pages.append(page)
            host = address.split("/")[2]

            def asked(what: Request) -> None:
                if what.url.split("/")[2] != host:
                    complaints.append(f"asked for {what.url}")

            page.on("request", asked)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda said: (
                    complaints.append(said.text)
                    if said.type in ("error", "warning")
                    and not any(words in said.text for words in expected)
                    else None
                ),
            )
            page.goto(address)
            page.wait_for_selector(SETTLED)
            return page

        yield opened
        if request.node.stash.get(_failed, False):
            name = re.sub(r"[^\w.-]+", "-", request.node.name)
            for number, page in enumerate(pages):
                if not page.is_closed():
                    page.screenshot(path=screenshots / f"failed-{name}-{number}.png")
    assert complaints == []
