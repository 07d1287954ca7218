"""The page's WebSocket, by a client that behaves as badly as browsers may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_messages import health, online, reported
from stage import Curtain
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edgekit.web import display
from edgekit_contract.messages import Execution

WAIT_S = 20.0


@pytest.fixture
def curtain() -> Iterator[Curtain]:
    with Curtain() as running:
        running.ask(lambda s: s.say("pi-1", online(), reported("1.0"), health(p50_ms=1)))
        yield running


def socket(curtain: Curtain) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{curtain.port}/live")


def heard(live: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(live.recv(WAIT_S)))


def say(live: ClientConnection, **wish: object) -> None:
    live.send(json.dumps(wish))


def value(message: dict[str, Any], key: str) -> Any:
    return message.get("set", {}).get(key)


def until(live: ClientConnection, key: str, wanted: str) -> None:
    """Apply frames until a cell says `wanted`."""
    for _ in range(100):
        message = heard(live)
        say(live, applied=message["n"])
        if value(message, key) == wanted:
            return
    raise AssertionError(f"{key} never was {wanted}")


def test_a_slow_browser_gets_the_newest_state_and_no_queue(curtain: Curtain) -> None:
    with socket(curtain) as slow, socket(curtain) as quick:
        say(slow, view="/devices")
        say(quick, view="/devices")
        first = heard(slow)
        assert first["whole"] and value(first, "device:pi-1.latency") == "1.70 ms"
        # the quick one sees every step; the slow one acknowledges none
        for step in range(2, 8):
            curtain.ask(lambda s, step=step: s.say("pi-1", health(p50_ms=step)))  # type: ignore[misc]
            until(quick, "device:pi-1.latency", display.milliseconds(step * 1.7))
        with pytest.raises(TimeoutError):
            slow.recv(0)
        say(slow, applied=first["n"])
        second = heard(slow)
        assert second["n"] == first["n"] + 1
        assert value(second, "device:pi-1.latency") == "11.9 ms"


def test_only_what_changed_is_sent_after_the_first_frame(curtain: Curtain) -> None:
    with socket(curtain) as live:
        say(live, view="/devices")
        first = heard(live)
        assert len(first["set"]) > 20
        say(live, applied=first["n"])
        curtain.ask(lambda s: s.say("pi-1", health(p50_ms=5)))
        message = heard(live)
        while "set" not in message:
            say(live, applied=message["n"])
            message = heard(live)
        assert set(message["set"]) <= {"device:pi-1.latency", "device:pi-1.heard"}
        assert "rows" not in message


def test_a_page_hears_a_beat_though_nothing_changes(curtain: Curtain) -> None:
    with socket(curtain) as live:
        say(live, view="/releases")
        for _ in range(3):
            message = heard(live)
            say(live, applied=message["n"])
        assert set(message) == {"n", "at"}


def test_a_page_may_turn_to_another_view_at_any_time(curtain: Curtain) -> None:
    with socket(curtain) as live:
        say(live, view="/devices")
        assert "devices" in heard(live)["rows"]
        say(live, view="/devices/pi-1")  # without having applied the first
        message = heard(live)
        assert message["whole"] and message["rows"]["models"] == ["model:digits"]
        assert len(message["points"]["host"]) == 1


def test_a_device_s_page_tells_what_computes_a_model_and_why_not_more(curtain: Curtain) -> None:
    reason = "CUDAExecutionProvider: its library does not load (libcublas.so.13: no such file)."
    lame = Execution(
        asked=("CUDAExecutionProvider", "CPUExecutionProvider"),
        used=("CPUExecutionProvider",),
        reason=reason,
    )
    curtain.ask(lambda s: s.say("pi-2", online(), reported("1.0", execution=lame)))
    with socket(curtain) as live:
        say(live, view="/devices/pi-2")
        message = heard(live)
        computed = value(message, "model:digits.execution")
        assert (computed["text"], computed["tone"]) == ("CPUExecutionProvider", "warn")
        assert message["rows"]["problems"] == ["problem:fallback:digits"]
        problem = value(message, "problem:fallback:digits.text")
        assert problem["text"] == f"digits does without {reason}"


def test_an_address_that_leads_nowhere_is_told_and_the_socket_lives_on(curtain: Curtain) -> None:
    with socket(curtain) as live:
        say(live, view="/devices/none")
        assert heard(live) == {"unknown": "/devices/none"}
        say(live, view="/")
        assert heard(live)["whole"]


@pytest.mark.parametrize(
    "words", ["", "{", "[]", '{"view": 1}', '{"other": 1}', '{"view": "' + "/" * 5000 + '"}']
)
def test_what_cannot_be_understood_ends_the_socket(curtain: Curtain, words: str) -> None:
    with socket(curtain) as live:
        live.send(words)
        with pytest.raises(ConnectionClosed) as closed:
            live.recv(WAIT_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007


def test_bytes_are_not_understood_either(curtain: Curtain) -> None:
    with socket(curtain) as live:
        live.send(b"\x00\xff")
        with pytest.raises(ConnectionClosed) as closed:
            live.recv(WAIT_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
    assert curtain.ask(lambda s: len(s.state.devices)) == 1


def test_pages_beyond_the_bound_are_told_to_try_later(
    curtain: Curtain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.web.live.MAX_PAGES", 1)
    with socket(curtain) as first:
        say(first, view="/")
        heard(first)
        with pytest.raises(InvalidStatus) as refused:
            socket(curtain)
        assert refused.value.response.status_code == 403
