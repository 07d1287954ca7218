"""The device table: its address is its state, and nobody is interrupted by what changes."""

from __future__ import annotations

from collections.abc import Callable

from fleet_messages import health, online, reported, will
from playwright.sync_api import Page, expect
from stage import Curtain, Stage

OpenPage = Callable[..., Page]


def fleet(s: Stage, count: int = 130) -> None:
    for number in range(count):
        device = f"pi-{number:03d}"
        profile = "raspberry-pi-5" if number % 2 else "jetson-orin-nano"
        s.say(device, online(), reported("1.0", profile=profile), health(p50_ms=1 + number))


def ids(page: Page) -> list[str]:
    return page.locator("tbody .at-device a").all_inner_texts()


def test_problems_come_first(curtain: Curtain, open_page: OpenPage) -> None:
    curtain.ask(fleet)
    curtain.ask(lambda s: s.say("pi-077", will()))
    page = open_page(f"{curtain.address}/devices")
    assert ids(page)[0] == "pi-077"
    curtain.ask(lambda s: s.say("pi-099", will()))
    expect(page.locator("tbody tr").nth(1)).to_contain_text("pi-099")


def test_typing_filters_without_reload_and_is_never_written_over(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(fleet)
    page = open_page(f"{curtain.address}/devices")
    page.evaluate("window.untouched = true")
    find = page.get_by_label("Find")
    find.press_sequentially("pi-01", delay=40)
    expect(page.locator("tbody tr")).to_have_count(10)
    expect(page.locator("#matches")).to_have_text("10 devices of 130")
    expect(page.locator("#announcer")).to_have_text("10 devices of 130")
    curtain.ask(lambda s: s.say("pi-010", will()))
    expect(page.locator("tbody tr").first).to_contain_text("Unreachable")
    expect(find).to_have_value("pi-01")
    expect(find).to_be_focused()
    find.press("9")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert page.url.endswith("/devices?q=pi-019")
    assert page.evaluate("window.untouched")


def test_an_address_brings_back_filter_order_and_page(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(fleet)
    page = open_page(f"{curtain.address}/devices?profile=jetson-orin-nano&sort=latency&page=2")
    expect(page.get_by_label("Profile")).to_have_value("jetson-orin-nano")
    expect(page.get_by_role("columnheader", name="p95")).to_have_attribute(
        "aria-sort", "descending"
    )
    assert ids(page)[0] == "pi-028"
    expect(page.get_by_role("navigation", name="Pages of the table")).to_contain_text("51–65 of 65")


def test_sorting_and_paging_by_click_can_be_taken_back(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(fleet)
    page = open_page(f"{curtain.address}/devices")
    page.get_by_role("link", name="p95").click()
    expect(page.locator("tbody tr").first).to_contain_text("pi-129")
    page.mouse.move(5, 5)
    page.get_by_role("link", name="Next").click()
    expect(page.locator("tbody tr").first).to_contain_text("pi-079")
    page.get_by_label("Presence").select_option("unreachable")
    expect(page.get_by_role("heading", name="No device like that")).to_be_visible()
    page.go_back()
    expect(page.get_by_label("Presence")).to_have_value("")
    expect(page.locator("tbody tr").first).to_contain_text("pi-079")
    page.go_back()
    expect(page.locator("tbody tr").first).to_contain_text("pi-129")


def test_the_order_is_held_under_the_pointer_and_values_go_on(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(lambda s: fleet(s, 8))
    page = open_page(f"{curtain.address}/devices?sort=latency")
    before = ids(page)
    row = page.locator("tbody tr").filter(has_text="pi-003")
    row.hover()
    expect(page.locator("#held")).to_be_visible()
    curtain.ask(lambda s: s.say("pi-003", health(p50_ms=500)))
    expect(row).to_contain_text("850 ms")
    assert ids(page) == before
    page.mouse.move(5, 5)
    expect(page.locator("tbody tr").first).to_contain_text("pi-003")
    expect(page.locator("#held")).to_be_hidden()


def test_the_focus_stays_on_a_row_that_moves(curtain: Curtain, open_page: OpenPage) -> None:
    curtain.ask(lambda s: fleet(s, 8))
    page = open_page(f"{curtain.address}/devices?sort=latency")
    link = page.get_by_role("link", name="pi-003")
    # focus by script alone, without the events that hold the order
    page.evaluate(
        """for (const kind of ["focusin", "focusout"])
             addEventListener(kind, (event) => event.stopImmediatePropagation(), true);"""
    )
    link.focus()
    curtain.ask(lambda s: s.say("pi-003", health(p50_ms=500)))
    expect(page.locator("tbody tr").first).to_contain_text("pi-003")
    expect(link).to_be_focused()


def test_ten_thousand_devices_are_one_page_of_fifty(curtain: Curtain, open_page: OpenPage) -> None:
    curtain.ask(lambda s: fleet(s, 10_000))
    page = open_page(f"{curtain.address}/devices")
    expect(page.locator("#matches")).to_have_text("10,000 devices")
    expect(page.locator("tbody tr")).to_have_count(50)
