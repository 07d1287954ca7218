"""Queries and orders of the device table, without a browser."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from fleet_messages import health, online, reported, will
from hypothesis import given
from hypothesis import strategies as st
from stage import Stage

from edgekit.hub.state import Presence
from edgekit.web.table import COLUMNS, MAX_PAGE, Only, Orders, Query, bundle_query, parse

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
QUERIES = st.builds(
    Query,
    words=WORDS.map(lambda text: text.strip().lower()),
    presence=st.none() | st.sampled_from(Presence),
    profile=WORDS,
    bundle=WORDS,
    only=st.sampled_from(Only),
    sort=st.sampled_from(sorted(COLUMNS)),
    descending=st.booleans(),
    page=st.integers(1, MAX_PAGE),
)


def asked(address: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(address).query))


@given(QUERIES)
def test_an_address_says_all_of_a_query(query: Query) -> None:
    again = parse(asked(query.address))
    assert again.address == query.address
    if query.words == query.words.strip().lower():
        assert again == query


@given(
    st.dictionaries(
        st.sampled_from("q presence profile bundle only sort order page".split()), WORDS
    )
)
def test_no_address_fails(asked: dict[str, str]) -> None:
    assert 1 <= parse(asked).page <= MAX_PAGE


def stage() -> Stage:
    s = Stage(now=lambda: 1_900_000_000.0)
    s.say("a", online(), reported("1.0"), health(p50_ms=3))
    s.say("b", online(), reported("1.1"), health(p50_ms=1))
    s.say("c", online(), reported(None), will())
    return s


def order(**how: object) -> list[str]:
    s = stage()
    return Orders(s.state).ids(Query(**how), s.now())  # type: ignore[arg-type]


def test_devices_that_lack_a_value_come_last_in_both_directions() -> None:
    assert order(sort="latency", descending=True) == ["a", "b", "c"]
    assert order(sort="latency", descending=False) == ["b", "a", "c"]


def test_devices_that_are_equal_stay_in_the_order_of_their_ids() -> None:
    assert order(sort="temperature", descending=True) == ["a", "b", "c"]
    assert order(sort="device", descending=True) == ["c", "b", "a"]


def test_filters_leave_what_they_name() -> None:
    assert order(only=Only.PROBLEMS) == ["c"]
    assert order(presence=Presence.ONLINE, sort="device", descending=False) == ["a", "b"]
    assert order(words="c") == ["c"]
    assert order(bundle="digits@1.1") == ["b"]
    assert order(bundle=bundle_query("digits", "").bundle) == ["c"]
    assert order(profile="none-such") == []


def test_an_order_is_worked_out_once_for_all_pages_of_a_query() -> None:
    s = stage()
    orders = Orders(s.state)
    first = orders.ids(Query(), 100.0)
    assert orders.ids(Query(page=2), 100.1) is first
    s.say("a", will())
    assert orders.ids(Query(), 100.5) is first, "no more often than once a second"
    assert orders.ids(Query(), 101.0)[0] == "a"


def test_an_order_that_nothing_touched_is_kept_for_ever() -> None:
    s = stage()
    orders = Orders(s.state)
    first = orders.ids(Query(), 100.0)
    s.say("a", health(p50_ms=4))
    assert orders.ids(Query(), 999.0) is first
    by_latency = Query(sort="latency")
    again = orders.ids(by_latency, 999.0)
    s.say("b", health(p50_ms=40))
    assert orders.ids(by_latency, 1001.0) != again


def test_what_is_asked_once_is_not_kept_for_ever() -> None:
    s = stage()
    orders = Orders(s.state)
    for number in range(200):
        orders.ids(Query(words=str(number)), 100.0)
    assert len(orders._orders) <= 64
