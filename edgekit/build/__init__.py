"""The build: from a trained model to the best bundle for each profile.

from edgekit.build import BuildRequest, build
"""

from edgekit.build.builder import BuildResult, Built, build
from edgekit.build.request import BuildRequest, Objective

__all__ = ["BuildRequest", "BuildResult", "Built", "Objective", "build"]
