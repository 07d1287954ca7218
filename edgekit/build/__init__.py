"""The build: from a trained model to the best bundle for each profile.

from edgekit.build import BuildRequest, build
"""

from edgekit.build.cache import Cache, find_cache
from edgekit.build.delivery import build
from edgekit.build.farm import build_all
from edgekit.build.request import BuildRequest, Objective
from edgekit.build.result import BuildResult, Built

__all__ = [
    "BuildRequest",
    "BuildResult",
    "Built",
    "Cache",
    "Objective",
    "build",
    "build_all",
    "find_cache",
]
