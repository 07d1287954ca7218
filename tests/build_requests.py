"""Build requests of tests: quick to measure, for this machine's kind of profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import edgekit_profiles
from edgekit.build import BuildRequest
from edgekit.build.host import read_host
from edgekit.demo.devices import small_profile
from edgekit_contract.profile import Profile, parse_profile

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
INT8 = "u8s8-reduced" if read_host().int8_saturates else "u8s8"
"""The arithmetic that is planned here for a device whose products cannot saturate."""


def host_profile() -> Profile:
    """This machine, so that what is measured holds."""
    return parse_profile(small_profile(read_host()), source="host_profile")


def request(model: Path, output: Path, **changes: Any) -> BuildRequest:
    values: dict[str, Any] = {
        "profiles": (edgekit_profiles.load("demo-small"),),
        "name": model.stem.replace("_", "-"),
        "version": "1.0",
        "search_time_s": 2.0,
    }
    return BuildRequest(model=model, output=output, **(values | changes))
