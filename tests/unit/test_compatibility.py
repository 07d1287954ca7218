"""A bundle fits a device if every requirement is met; what is not met is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from bundles import null_bundle
from hypothesis import given
from hypothesis import strategies as st

from edgekit_contract.compatibility import unmet, version_tuple
from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import Arch

FACTS = DeviceFacts(
    profile="demo-small",
    arch="aarch64",
    features=("asimd", "asimddp"),
    cores=4,
    ram_bytes=1 << 30,
    runtimes={"null": "1.0.0"},
)


def requiring(**needs: Any) -> Manifest:
    manifest = null_bundle().manifest
    return msgspec.structs.replace(
        manifest, requires=msgspec.structs.replace(manifest.requires, **needs)
    )


@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"arch": (Arch.AARCH64, Arch.X86_64)},
        {"features": ("asimddp",)},
        {"min_runtime_version": "1.0"},
        {"min_runtime_version": "0.9.9"},
        {"peak_ram_bytes": 900 << 20},
    ],
)
def test_met_requirements_leave_nothing(needs: dict[str, Any]) -> None:
    assert unmet(requiring(**needs), FACTS) == []


@pytest.mark.parametrize(
    ("needs", "facts", "says"),
    [
        ({}, {"profile": "raspberry-pi-4"}, "for profile demo-small"),
        ({"arch": (Arch.X86_64,)}, {}, "x86_64, not aarch64"),
        ({"features": ("i8mm", "asimd")}, {}, "lacks i8mm"),
        ({}, {"runtimes": {}}, "null is not installed"),
        ({}, {"runtimes": {"onnxruntime": "1.0.0"}}, "null is not installed"),
        ({"min_runtime_version": "1.0.1"}, {}, "null 1.0.0 is older than 1.0.1"),
        ({"min_runtime_version": "1.10"}, {"runtimes": {"null": "1.9"}}, "older than 1.10"),
        ({"peak_ram_bytes": 1 << 30}, {}, "1024 MiB of RAM"),
    ],
)
def test_each_unmet_requirement_is_named(
    needs: dict[str, Any], facts: dict[str, Any], says: str
) -> None:
    (phrase,) = unmet(requiring(**needs), msgspec.structs.replace(FACTS, **facts))
    assert says in phrase


def test_all_unmet_requirements_are_listed() -> None:
    manifest = requiring(arch=(Arch.X86_64,), features=("avx2",), peak_ram_bytes=1 << 40)
    assert len(unmet(manifest, msgspec.structs.replace(FACTS, profile="x", runtimes={}))) == 5


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.23.2", (1, 23, 2)),
        ("1.23.2+cu12", (1, 23, 2)),
        ("1.20.0rc1", (1, 20)),
        ("1.20", (1, 20)),
        ("2", (2,)),
        ("", ()),
        ("v1", ()),
        ("1..2", (1,)),
        ("²", ()),
    ],
)
def test_version_s_leading_numbers_are_compared(version: str, numbers: tuple[int, ...]) -> None:
    assert version_tuple(version) == numbers


@given(st.text(max_size=50) | st.integers(0, 9).map(lambda digit: str(digit) * 10_000))
def test_any_text_is_a_version_of_some_kind(text: str) -> None:
    assert all(number >= 0 for number in version_tuple(text))
