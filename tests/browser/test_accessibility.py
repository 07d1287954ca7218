"""Every page for everybody: narrow screens, keyboards, screen readers, both colour schemes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from fleet_messages import event, health, online, outcome, reported, will
from playwright.sync_api import Page, expect
from stage import Curtain, Stage

from edgekit_contract.messages import EventKind, OutcomeKind, Phase

OpenPage = Callable[..., Page]

LONG = "a-device-with-a-name-as-long-as-names-may-be-which-is-64-letters"
ADDRESSES = (
    "/",
    "/devices",
    f"/devices/{LONG}",
    "/rollouts",
    "/rollouts/digits-1.1-1",
    "/releases",
    "/nothing",
)


def busy(s: Stage) -> None:
    """A fleet in which everything that a page can show is there, in its longest words."""
    reason = "golden vector 3 of output scores differs by 0.4131 (tolerance 0.0200), " + "x" * 60
    s.publish("digits", "1.0", raspberry_pi_5=300_000)
    s.publish("digits", "1.1", raspberry_pi_5=300_000, jetson_orin_nano=400_000)
    for number in range(60):
        s.say(f"pi-{number:02d}", online(), reported("1.0"), health())
    s.say("pi-01", will())
    ended = outcome(OutcomeKind.REFUSED, "1.1", Phase.WARMUP, reason)
    s.say(
        LONG,
        online(),
        reported("1.0", phase=Phase.FETCH, target="1.1", progress=0.5, last=ended),
        health(throttled=True),
        health(throttled=True, errors=50),
        event(reason, EventKind.OUTCOME, version="1.1", ended=OutcomeKind.REFUSED),
    )


@pytest.fixture
def theatre(curtain: Curtain) -> Curtain:
    curtain.ask(busy)
    curtain.ask(lambda s: asyncio.ensure_future(s.start_rollout("digits", "1.1", selector="all")))
    return curtain


def each_page(open_page: OpenPage, theatre: Curtain, **how: object) -> Iterator[tuple[str, Page]]:
    """The pages in turn, each when it is live."""
    page = open_page(theatre.address, expected=["404 (Not Found)"], **how)
    for address in ADDRESSES:
        page.goto(theatre.address + address)
        page.wait_for_selector("#pulse[data-tone=good], body[data-section='']")
        yield address, page


WIDEST = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
  [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)
    .map((e) => `${e.tagName}.${e.className?.baseVal ?? e.className}`)"""


@pytest.mark.parametrize("width", [390, 320])
def test_no_page_scrolls_sideways_on_a_phone(
    theatre: Curtain, open_page: OpenPage, width: int
) -> None:
    for address, page in each_page(open_page, theatre, width=width, height=844):
        assert page.evaluate(WIDEST) == [], address


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) =>
    [r, g, b].map((value, i) => value * a + under[i] * (1 - a)).concat(1);
  const ground = (element) => {
    if (element === null) return rgba(getComputedStyle(document.documentElement).backgroundColor);
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => {
      v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!words || !element.checkVisibility() || element.closest("noscript, .unseen")) continue;
    const style = getComputedStyle(element);
    const back = ground(element);
    const [a, b] = [light(over(rgba(style.color), back)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio >= (large ? 3 : 4.5)) continue;
    poor.push(`${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(
    theatre: Curtain, open_page: OpenPage, dark: bool
) -> None:
    for address, page in each_page(open_page, theatre, dark=dark):
        assert page.evaluate(CONTRAST) == [], address


STRUCTURE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = all("[id]").map((element) => element.id);
  return {
    h1: all("h1").length,
    main: all("main").length,
    language: document.documentElement.lang,
    twice: seen.filter((id, index) => seen.indexOf(id) !== index),
    unnamed: all("a, button, input, select").filter((e) =>
      e.checkVisibility() && !e.textContent.trim() && !e.ariaLabel && !e.labels?.length).length,
    dangling: all("[aria-labelledby], [aria-describedby]").flatMap((e) =>
      [e.getAttribute("aria-labelledby"), e.getAttribute("aria-describedby")])
      .filter((id) => id && !document.getElementById(id)),
    inline: all("[style], style, script:not([src])")
      .filter((e) => !e.closest(".plot, .legend-line")).map((e) => e.outerHTML),
    nameless: all("nav").filter((e) => !e.ariaLabel).length,
  };
}"""


def test_pages_have_landmarks_names_and_one_heading_each(
    theatre: Curtain, open_page: OpenPage
) -> None:
    for address, page in each_page(open_page, theatre):
        assert page.evaluate(STRUCTURE) == {
            "h1": 1,
            "main": 1,
            "language": "en",
            "twice": [],
            "unnamed": 0,
            "dangling": [],
            "inline": [],
            "nameless": 0,
        }, address


def test_a_keyboard_reaches_everything_and_shows_where_it_is(
    theatre: Curtain, open_page: OpenPage
) -> None:
    page = open_page(theatre.address)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".tile").first).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"

    page.goto(f"{theatre.address}/devices")
    page.get_by_label("Find").focus()
    page.keyboard.type("pi-07")
    expect(page.locator("tbody tr")).to_have_count(1)
    reach(page, "pi-07")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="pi-07", level=1)).to_be_visible()


def test_a_question_is_answered_by_keyboard_and_gives_the_focus_back(
    theatre: Curtain, open_page: OpenPage
) -> None:
    page = open_page(f"{theatre.address}/rollouts/digits-1.1-1")
    reach(page, "Abort")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Abort this rollout?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Abort", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    reach(page, "Abort the rollout")
    page.keyboard.press("Enter")
    expect(page.locator(".head")).to_contain_text("Aborted")


def reach(page: Page, words: str) -> None:
    """Press Tab until the element of these words has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == words:
            return
    raise AssertionError(f"Tab does not reach {words!r}")


def test_whoever_asks_for_stillness_gets_no_animation(
    theatre: Curtain, open_page: OpenPage
) -> None:
    page = open_page(theatre.address, still=True)
    assert page.evaluate("document.getAnimations().length") == 0


def test_live_values_are_not_read_out_and_what_matters_is_said_politely(
    theatre: Curtain, open_page: OpenPage
) -> None:
    page = open_page(theatre.address)
    live = page.locator("[aria-live], [role=status]").evaluate_all("all => all.map(e => e.id)")
    assert live == ["announcer"]
    expect(page.locator("#announcer")).to_have_attribute("aria-live", "polite")


def test_pages_say_what_they_show_before_any_script_has_run(
    theatre: Curtain, open_page: OpenPage
) -> None:
    page = open_page(theatre.address)
    context = page.context.browser
    assert context is not None
    plain = context.new_context(java_script_enabled=False).new_page()
    for address, words in {
        "/": "of 61 devices",
        "/devices": "pi-01",
        f"/devices/{LONG}": "Raspberry Pi 5 Model B",
        "/rollouts/digits-1.1-1": "updating",
        "/releases": "jetson-orin-nano (391 KiB)",
    }.items():
        plain.goto(theatre.address + address)
        expect(plain.locator("main")).to_contain_text(words)
    plain.context.close()
