"""Environments of tools for tests, kept in the checkout: making one takes half a minute."""

from __future__ import annotations

import os
from pathlib import Path

import parts
import pytest

from edgekit_contract.errors import Refused
from edgekit_converters import environments
from edgekit_converters.environments import Environment

CACHE = Path(__file__).parents[1] / ".venv" / "tools"


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
