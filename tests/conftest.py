"""For all tests: nothing that a user of this machine has cached takes part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of every build: without it, tools that happen to be there would be tried, too."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(directory))
        patch.setenv("EDGEKIT_CACHE_MIB", "0")  # no build sees what another left
        yield directory
