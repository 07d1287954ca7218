"""Who may ask the dashboard, and the JSON API, by raw requests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fleet_messages import event, health, online, reported
from stage import Curtain
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


@pytest.fixture(scope="module")
def curtain() -> Iterator[Curtain]:
    with Curtain() as running:
        running.ask(
            lambda s: (
                s.publish("digits", "1.1", raspberry_pi_5=300_000),
                s.say("pi-1", online(), reported("1.0"), health(), event("began")),
            )
        )
        yield running


@pytest.fixture(scope="module")
def client(curtain: Curtain) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=curtain.address) as made:
        yield made


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"]
)
def test_a_name_that_is_not_ours_is_refused(client: httpx.Client, host: str) -> None:
    for address in ("/", "/api/v1/devices", "/static/x"):
        assert client.get(address, headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_loopback_by_any_of_its_names_is_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_orders_from_another_origin_are_refused(
    client: httpx.Client, curtain: Curtain, headers: dict[str, str]
) -> None:
    form = {"release": "digits@1.1", "selector": "all"}
    json = {"model": "digits", "version": "1.1"}
    for answer in (
        client.post("/rollouts", data=form, headers=headers),
        client.post("/api/v1/rollouts", json=json, headers=headers),
    ):
        assert answer.status_code == 403
    assert curtain.ask(lambda s: len(s.rollouts())) == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_socket_from_another_origin_is_refused(curtain: Curtain, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{curtain.port}/live", additional_headers={"Origin": origin})
    assert refused.value.response.status_code == 403


def test_a_body_must_tell_its_length_and_be_short(client: httpx.Client) -> None:
    assert client.post("/rollouts", content=iter([b"a=b"])).status_code == 411
    assert client.post("/rollouts", content=b"a" * 20_000).status_code == 413


def test_a_form_of_too_many_fields_is_a_bad_request(client: httpx.Client) -> None:
    form = {f"field-{number}": "x" for number in range(50)}
    answer = client.post("/rollouts", data=form)
    assert answer.status_code == 400 and "fields" in answer.json()["detail"]


def test_pages_run_only_our_own_files(client: httpx.Client) -> None:
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    (style,) = (part for part in answer.text.split('"') if part.endswith("app.css"))
    static = client.get(style)
    assert static.status_code == 200 and "immutable" in static.headers["cache-control"]
    assert client.get("/static/../app.py").status_code == 404
    assert client.get(style.replace("app.css", "%2e%2e/app.py")).status_code == 404


@pytest.mark.parametrize("address", ["/devices/none", "/devices/UPPER", "/rollouts/none", "/x/y"])
def test_an_address_that_leads_nowhere_is_404_with_a_way_out(
    client: httpx.Client, address: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == 404 and 'href="/"' in answer.text


def test_the_api_tells_what_the_pages_show(client: httpx.Client) -> None:
    fleet = client.get("/api/v1/fleet").json()
    assert fleet["devices"] == 1 and fleet["by_bundle"] == {"digits": {"1.0": 1}}
    listed = client.get("/api/v1/devices", params={"presence": "online"}).json()
    assert [device["id"] for device in listed["devices"]] == ["pi-1"]
    assert client.get("/api/v1/devices/pi-1").json()["models"]["digits"]["p50_ms"] == 2.0
    series = client.get("/api/v1/devices/pi-1/health", params={"since": 0}).json()
    assert series["model:digits"]["columns"][:3] == ["at", "p50_ms", "p95_ms"]
    assert len(series["host"]["rows"]) == 1
    assert client.get("/api/v1/devices/pi-1/events").json()[0]["text"] == "began"
    assert client.get("/api/v1/releases").json()[0]["profiles"] == {"raspberry-pi-5": 300_000}
    assert client.get("/api/v1/devices/pi-2").status_code == 404


def test_the_api_describes_all_of_itself(client: httpx.Client) -> None:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {path.removeprefix("/api/v1") for path in paths} == {
        "/fleet",
        "/devices",
        "/devices/{device_id}",
        "/devices/{device_id}/health",
        "/devices/{device_id}/events",
        "/releases",
        "/rollouts",
        "/rollouts/{rollout_id}",
        "/rollouts/{rollout_id}/devices",
        "/rollouts/{rollout_id}/{action}",
    }


def test_an_order_by_the_api_is_obeyed_or_refused_in_a_sentence() -> None:
    with Curtain() as own, httpx.Client(base_url=own.address) as client:
        own.ask(lambda s: s.publish("digits", "1.1", raspberry_pi_5=1))
        wrong = client.post("/api/v1/rollouts", json={"model": "digits", "version": "9"})
        assert wrong.status_code == 409 and "no release digits@9" in wrong.json()["detail"]
        bad = {"model": "digits", "version": "1.1", "selector": "kind:pi"}
        assert client.post("/api/v1/rollouts", json=bad).status_code == 422
        good = client.post("/api/v1/rollouts", json={"model": "digits", "version": "1.1"})
        assert good.status_code == 201
        here = f"/api/v1/rollouts/{good.json()['id']}"
        assert client.post(f"{here}/pause", content=b"").json()["status"] == "paused"
        assert client.post(f"{here}/pause", content=b"").status_code == 409
        assert client.post(f"{here}/explode", content=b"").status_code == 422
