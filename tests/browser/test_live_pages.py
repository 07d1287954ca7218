"""Pages that move by themselves: devices, charts, rollouts, and the way back after a cut."""

from __future__ import annotations

import time
from collections.abc import Callable

from fleet_messages import event, health, online, outcome, reported, will
from playwright.sync_api import Page, expect
from stage import Curtain, Stage

from edgekit.hub.state import forget
from edgekit_contract.messages import EventKind, OutcomeKind, Phase

OpenPage = Callable[..., Page]


def test_a_device_appears_dies_and_recovers_without_reload(
    curtain: Curtain, open_page: OpenPage
) -> None:
    page = open_page(curtain.address)
    expect(page.get_by_role("heading", name="No device yet")).to_be_visible()

    curtain.ask(lambda s: s.say("pi-1", online(), reported("1.0"), health()))
    expect(page.get_by_role("heading", name="No device yet")).to_be_hidden()
    tiles = page.locator(".tiles")
    expect(tiles).to_contain_text("of 1 device")
    expect(page.get_by_role("link", name="digits 1.0")).to_be_visible()
    expect(page.get_by_text("Every device that should be heard is heard")).to_be_visible()

    curtain.ask(lambda s: s.say("pi-1", will()))
    problems = page.get_by_role("region", name="Problems first")
    expect(problems.get_by_role("link", name="pi-1")).to_be_visible()
    expect(problems).to_contain_text("the broker has lost its connection")
    expect(page.get_by_role("link", name="Devices 1")).to_be_visible()

    curtain.ask(lambda s: s.say("pi-1", online("a2"), health()))
    expect(problems.get_by_role("link", name="pi-1")).to_have_count(0)
    expect(page.get_by_text("Every device that should be heard is heard")).to_be_visible()


def test_a_device_page_follows_an_update_to_its_outcome(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(lambda s: s.say("pi-1", online(), reported("1.0"), health()))
    page = open_page(f"{curtain.address}/devices/pi-1")
    model = page.locator(".model")
    expect(model).to_contain_text("Idle")

    curtain.ask(
        lambda s: s.say("pi-1", reported("1.0", phase=Phase.FETCH, target="1.1", progress=0.4))
    )
    expect(model.get_by_text("Fetch · to 1.1")).to_be_visible()
    expect(model.locator("[aria-current=step]")).to_have_text("Fetch")
    expect(model.get_by_role("progressbar")).to_have_js_property("value", 0.4)

    ended = outcome(OutcomeKind.REFUSED, "1.1", Phase.WARMUP, "golden vector 3 differs")
    curtain.ask(
        lambda s: s.say(
            "pi-1",
            reported("1.0", last=ended),
            event(
                "golden vector 3 differs",
                EventKind.OUTCOME,
                version="1.1",
                ended=OutcomeKind.REFUSED,
            ),
        )
    )
    expect(model.locator(".outcome")).to_contain_text("Refused 1.1")
    expect(model.locator(".steps")).to_be_hidden()
    expect(page.get_by_role("region", name="Problems")).to_contain_text("golden vector 3 differs")
    log = page.get_by_role("region", name="Event log").get_by_role("listitem")
    expect(log).to_have_count(1)
    expect(log).to_contain_text("golden vector 3 differs")


def picture(page: Page, chart: str) -> str:
    """The pixels of a chart."""
    return str(
        page.evaluate(
            f"document.querySelector('[data-chart={chart}] canvas')?.toDataURL() ?? 'none'"
        )
    )


def test_charts_show_stored_health_and_move_with_each_message(
    curtain: Curtain, open_page: OpenPage
) -> None:
    now = time.time()

    def past(s: Stage) -> None:
        s.say("pi-1", online(), reported("1.0"))
        for k in range(30):
            at = now - 10 * (30 - k)
            s.say("pi-1", health(at=at, p50_ms=1 + k / 30, temperature_c=40 + k / 3), at=at)

    curtain.ask(past)
    page = open_page(f"{curtain.address}/devices/pi-1")
    page.wait_for_function("document.querySelectorAll('[data-chart] canvas').length === 3")
    before = {chart: picture(page, chart) for chart in ("latency", "temperature", "memory")}
    curtain.ask(lambda s: s.say("pi-1", health(p50_ms=9.0, temperature_c=77, rss_mib=120)))
    expect(page.locator(".model .kpis")).to_contain_text("15.3 ms")
    expect(page.get_by_role("region", name="Host")).to_contain_text("77.0 °C")
    for chart, old in before.items():
        assert picture(page, chart) != old, chart


def test_a_chart_tells_its_values_under_the_pointer(curtain: Curtain, open_page: OpenPage) -> None:
    def past(s: Stage) -> None:
        s.say("pi-1", online(), reported("1.0"))
        for k in range(5):
            s.say("pi-1", health(at=time.time() - 50 + 10 * k, p50_ms=2.5))

    curtain.ask(past)
    page = open_page(f"{curtain.address}/devices/pi-1")
    chart = page.locator("[data-chart=latency]")
    chart.locator(".u-over").hover()
    expect(chart.locator(".legend-line")).to_contain_text("p50 2.50 ms")


def test_a_rollout_is_started_watched_paused_and_aborted_with_a_question_each_time(
    curtain: Curtain, open_page: OpenPage
) -> None:
    def fleet(s: Stage) -> None:
        s.publish("digits", "1.1", raspberry_pi_5=300_000)
        for device in ("pi-1", "pi-2", "pi-3"):
            s.say(device, online(), reported("1.0"))
        s.say("nano-1", online(), reported("1.0", profile="jetson-orin-nano"))

    curtain.ask(fleet)
    page = open_page(f"{curtain.address}/releases")
    page.get_by_role("link", name="Roll out").click()
    page.get_by_role("button", name="Start", exact=True).click()
    dialog = page.get_by_role("dialog", name="Start this rollout?")
    expect(dialog).to_contain_text("digits@1.1")
    dialog.get_by_role("button", name="Not now").click()
    expect(dialog).to_be_hidden()
    assert curtain.ask(lambda s: len(s.rollouts())) == 0

    page.get_by_role("button", name="Start", exact=True).click()
    dialog.get_by_role("button", name="Start the rollout").click()
    expect(page.get_by_role("heading", name="digits 1.1")).to_be_visible()
    expect(page.locator(".wave")).to_contain_text("3 updating, 1 skipped")
    failures = page.get_by_role("region", name="Failed and skipped")
    expect(failures).to_contain_text("no bundle for profile jetson-orin-nano")

    generation = curtain.ask(lambda s: s.conduct.wanted["pi-1"].generation)
    warm = reported("1.0", generation=generation, phase=Phase.WARMUP, target="1.1")
    curtain.ask(lambda s: s.say("pi-1", warm))
    expect(page.get_by_role("region", name="Updating, by phase")).to_contain_text("Warmup")
    ended = outcome(OutcomeKind.ROLLED_BACK, "1.1", Phase.PROBATION, "12% of requests failed")
    curtain.ask(lambda s: s.say("pi-1", reported("1.0", generation=generation, last=ended)))
    curtain.ask(lambda s: s.say("pi-2", reported("1.1", generation=generation)))
    expect(page.locator(".wave")).to_contain_text("1 committed, 1 updating, 1 failed, 1 skipped")
    expect(failures).to_contain_text("rolled back in probation: 12% of requests failed")

    order(page, "Pause", "Pause the rollout")
    expect(page.locator(".head")).to_contain_text("Paused")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    order(page, "Resume", "Resume the rollout")
    expect(page.locator(".head")).to_contain_text("Running")
    order(page, "Abort", "Abort the rollout")
    expect(page.locator(".head")).to_contain_text("Aborted")
    expect(page.locator(".head .actions button:visible")).to_have_count(0)


def order(page: Page, name: str, confirmation: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name=confirmation).click()
    page.wait_for_selector("#pulse[data-tone=good]")


def test_a_refused_order_is_told_in_a_sentence(curtain: Curtain, open_page: OpenPage) -> None:
    curtain.ask(lambda s: s.publish("digits", "1.1", raspberry_pi_5=300_000))
    page = open_page(f"{curtain.address}/rollouts", expected=["409 (Conflict)"])
    page.get_by_label("To").fill("kind:pi")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("button", name="Start the rollout").click()
    expect(page.get_by_role("alert")).to_contain_text("'kind:pi' selects nothing")
    assert curtain.ask(lambda s: len(s.rollouts())) == 0


def test_the_page_says_when_the_broker_is_lost(curtain: Curtain, open_page: OpenPage) -> None:
    page = open_page(curtain.address)
    banner = page.get_by_text("The hub has no connection to its broker")
    expect(banner).to_be_hidden()
    curtain.ask(lambda s: setattr(s, "broker_connected", False))
    expect(banner).to_be_visible()
    curtain.ask(lambda s: setattr(s, "broker_connected", True))
    expect(banner).to_be_hidden()


def test_a_page_tells_that_it_is_cut_off_and_finds_back_by_itself(open_page: OpenPage) -> None:
    with Curtain() as first:
        page = open_page(first.address, expected=["WebSocket connection"])
        port = first.port
    expect(page.locator("#pulse")).to_contain_text("Cut off")
    expect(page.locator("#announcer")).to_contain_text("lost")
    with Curtain(port=port) as second:
        second.ask(lambda s: s.say("pi-9", online(), reported("1.0")))
        expect(page.locator("#pulse")).to_contain_text("Live")
        expect(page.locator(".tiles")).to_contain_text("of 1 device")


def test_a_page_that_nobody_sees_is_sent_nothing(curtain: Curtain, open_page: OpenPage) -> None:
    page = open_page(f"{curtain.address}/devices")
    page.evaluate(
        """Object.defineProperty(document, "hidden", {value: true, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"))"""
    )
    heard: list[str] = []
    page.on("websocket", lambda _: heard.append("again"))
    other = open_page(f"{curtain.address}/devices")
    curtain.ask(lambda s: s.say("pi-1", online(), reported("1.0")))
    expect(other.get_by_role("link", name="pi-1")).to_be_visible()
    expect(page.get_by_role("link", name="pi-1")).to_have_count(0)
    page.evaluate(
        """Object.defineProperty(document, "hidden", {value: false});
        document.dispatchEvent(new Event("visibilitychange"))"""
    )
    expect(page.get_by_role("link", name="pi-1")).to_be_visible()
    assert heard == []


def test_a_device_that_is_revoked_says_so_on_its_page(
    curtain: Curtain, open_page: OpenPage
) -> None:
    curtain.ask(lambda s: s.say("pi-1", online(), reported("1.0")))
    page = open_page(f"{curtain.address}/devices/pi-1")
    curtain.ask(lambda s: forget(s.state, "pi-1"))
    expect(page.get_by_text("This device is no longer of the fleet.")).to_be_visible()
