"""Environments of tools and sysroots for tests, kept in the checkout: each takes half a minute."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import parts
import pytest

from edgekit.emulation import layers, set_up
from edgekit.emulation.sysroot import planned
from edgekit_contract.errors import Refused
from edgekit_contract.profile import Profile
from edgekit_converters import environments
from edgekit_converters.environments import Environment

CACHE = Path(__file__).parents[1] / ".venv" / "tools"
SYSROOTS = CACHE.with_name("sysroots")
"""Another cache, so that builds beside emulation do not find tools."""


def need_environment(environment: Environment) -> Path:
    """The cache directory that has it: made under CI=true, else a skip where it is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(CACHE))
        if environments.find(environment) is None:
            if os.environ.get("CI") != "true":
                setup = f"EDGEKIT_CACHE={CACHE} edgekit environments setup {environment.name}"
                parts.missing(f"{environment.title} has no tools here: {setup}")
            try:
                environments.set_up(environment)
            except Refused as error:
                parts.missing(str(error))
    return CACHE


def need_sysroot(profile: Profile) -> Path:
    """The cache directory that has the profile's sysroot: made under CI=true, else a skip where
    what has to be downloaded is not there. edgekit's own wheel is always made anew."""
    parts.need("qemu-aarch64-static")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(SYSROOTS))
        plan = planned(profile)
        if os.environ.get("CI") != "true" and not (plan.base.is_dir() and plan.wheels.is_dir()):
            setup = f"EDGEKIT_CACHE={SYSROOTS} edgekit emulation setup --profile {profile.name}"
            parts.missing(f"{profile.name} has no sysroot here: {setup}")
        try:
            set_up(profile)
        except Refused as error:
            parts.missing(str(error))
    return SYSROOTS


def need_layer(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a layer of a sysroot that no profile has, else as `need_sysroot`."""
    parts.need("qemu-aarch64-static")
    if os.environ.get("CI") != "true" and not path.is_dir():
        parts.missing(f"{path.name} has to be downloaded: set CI=true")
    try:
        layers.make(path, fill)
    except Refused as error:
        parts.missing(str(error))
