"""The tools of a build that are no part of edgekit: whether they are here, and getting them.

Invariant: nothing is installed that the build can do without and nobody asked for.
"""

from __future__ import annotations

from typing import Final

from edgekit.build.progress import Progress
from edgekit.build.request import BuildRequest
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import environments, isolation

__all__ = ["missing_tools"]

_ONNX: Final = RuntimeKind.ONNXRUNTIME
_LITERT: Final = RuntimeKind.LITERT


def missing_tools(
    kind: RuntimeKind, request: BuildRequest, progress: Progress, neighbours: isolation.Neighbours
) -> dict[RuntimeKind, str]:
    """Runtimes whose variants cannot be made here, and why; sets up what is asked for.

    Tools for LiteRT are set up where no bundle can be made without them, or where a pattern names
    such recipes; nobody else waits for a download, and `neighbours` not for its end. Errors:
    `Refused`.
    """
    wanted = [p for p in request.profiles if p.runtime(_LITERT) is not None]
    if not wanted or environments.find(environments.LITERT) is not None:
        return {}
    needed = kind is _ONNX and any(p.runtime(_ONNX) is None for p in wanted)
    named = any(pattern.startswith(_LITERT.value) for pattern in request.recipes)
    if (needed or named) and not request.dry_run:
        size = environments.LITERT.size_mb
        with progress.stage(f"installing tools for LiteRT (about {size} MB, once)", None):
            environments.set_up(environments.LITERT, neighbours=neighbours)
        return {}
    if needed or named:
        return {}
    return {
        _LITERT: "its tools are not installed: edgekit environments setup "
        f"{environments.LITERT.name} ({environments.LITERT.size_mb} MB)"
    }
