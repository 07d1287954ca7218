"""Names are safe as topic levels, file names and URL segments, or they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_contract import names
from edgekit_contract.errors import InvalidName, Misused

SLUGS = [names.fleet_name, names.model_name, names.profile_name]
ALL = [*SLUGS, names.device_id, names.version, names.file_path]


@pytest.mark.parametrize("check", SLUGS)
@pytest.mark.parametrize("value", ["a", "0", "a-b", "a--b", "a" * 64])
def test_slug_within_its_rule_passes(check: Callable[[str], str], value: str) -> None:
    assert check(value) == value


@pytest.mark.parametrize("check", SLUGS)
@pytest.mark.parametrize("value", ["", "-", "-a", "a-", "A", "a_b", "a.b", "a b", "ä", "a" * 65])
def test_slug_outside_its_rule_is_refused(check: Callable[[str], str], value: str) -> None:
    with pytest.raises(InvalidName):
        check(value)


@pytest.mark.parametrize("check", ALL)
@pytest.mark.parametrize(
    "value", ["a\n", "a\0", "../a", "/a", "a/../b", "a\\b", "+", "#", "$x", "٣"]
)
def test_no_name_may_hold_what_breaks_out(check: Callable[[str], str], value: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check(value)
    assert isinstance(caught.value, Misused)
    assert caught.value.value == value


def test_hub_is_no_device() -> None:
    with pytest.raises(InvalidName, match="reserved"):
        names.device_id(names.HUB)


@pytest.mark.parametrize("value", ["1", "1.0.0", "2026.11-rc1", "1.0+build.5", "0" * 31])
def test_version_within_its_rule_passes(value: str) -> None:
    assert names.version(value) == value


@pytest.mark.parametrize("value", ["", "v1", ".1", "1-", "1-a-b", "1_0", "1 0", "0" * 32])
def test_version_outside_its_rule_is_refused(value: str) -> None:
    with pytest.raises(InvalidName):
        names.version(value)


@given(st.text(alphabet="ab./\\-_+ \n", max_size=40))
def test_path_that_passes_stays_inside(value: str) -> None:
    try:
        path = PurePosixPath(names.file_path(value))
    except InvalidName:
        return
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert str(path) == value


def test_bundle_filename_is_as_documented() -> None:
    assert names.bundle_filename("digits", "1.0", "demo-small") == "digits-1.0-demo-small.ekb"


def test_error_shows_no_more_than_the_beginning_of_a_long_name() -> None:
    with pytest.raises(InvalidName) as caught:
        names.model_name("x" * 100_000)
    assert len(str(caught.value)) < 250
