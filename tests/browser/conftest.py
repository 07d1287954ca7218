"""A real Chromium against the real dashboard. Whatever it complains of fails the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
from parts import need
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
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Opens a page; afterwards, complaints of the browser and requests elsewhere are failures."""
    complaints: list[str] = []
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
            host = address.split("/")[2]

            def asked(request: Request) -> None:
                if request.url.split("/")[2] != host:
                    complaints.append(f"asked for {request.url}")

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
    assert complaints == []
