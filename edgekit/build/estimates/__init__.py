"""How long a variant may take on a device that is not here: computed, and never a measurement.

`trace` says which operators ran, and on tensors of which shapes, `operators` what each costs,
`litert` the same of LiteRT's, `cores` what a processor can do, and `roofline` how long that takes,
with an error bar.
"""

from __future__ import annotations

from edgekit.build.estimates.cores import Core, core_of
from edgekit.build.estimates.roofline import estimate
from edgekit.build.estimates.trace import trace

__all__ = ["Core", "core_of", "estimate", "trace"]
