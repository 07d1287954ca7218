"""Fingerprints: the keys of what is kept, from everything that it was made of.

Invariant: two builds with one key would differ only as two measurements of the same thing do.
Whatever may change a result is an ingredient of its key: bytes of model and data, what was asked,
edgekit's own source, the versions of its tools, Python, and this machine, since what is measured
here holds here. Names of files and directories are none, but for the model's, which a bundle tells.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.host import read_host
from edgekit.build.notebook import default_path
from edgekit.build.request import BuildRequest
from edgekit_contract.profile import Profile
from edgekit_converters import environments, recipes
from edgekit_converters.callables import is_callable_name
from edgekit_converters.sources import doors, sha256_of
from edgekit_runtime import plugins

__all__ = [
    "APART",
    "Circumstances",
    "circumstances",
    "key_of",
    "repeatable_model",
    "result_key",
    "source_digest",
]

APART: Final = {
    "model": "by its bytes",
    "calibration": "by its bytes",
    "validation": "by its bytes",
    "profiles": "one at a time",
    "search_time_s": "as the share of one profile",
    "figures": "by its bytes",
    "output": "where a bundle goes",
    "key": "signing comes after",
    "dry_run": "makes nothing",
}
"""Fields of `BuildRequest` that are no ingredients as they are, and why."""
_PACKAGES: Final = (
    "edgekit.build",
    "edgekit_converters",
    "edgekit_runtime",
    "edgekit_contract",
)
"""What of edgekit takes part in a build."""
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9._-]+")


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What all builds here have in common."""

    source: str
    """Digest of edgekit's own modules: in a checkout they change without a version."""
    recipes: tuple[str, ...]
    packages: dict[str, str]
    """Versions of all that edgekit asks for and is installed, and of what brings it recipes, doors
    or runtimes."""
    environments: dict[str, str | None]
    """Which ones are set up, see `edgekit_converters.environments`."""
    python: str
    arch: str
    core: str
    features: tuple[str, ...]
    cores: int


def circumstances() -> Circumstances:
    """As they are now: a build may set up an environment."""
    return msgspec.structs.replace(_lasting(), environments=_environments())


def _environments() -> dict[str, str | None]:
    found = {name: environments.find(e) for name, e in environments.ENVIRONMENTS.items()}
    return {name: str(python.parents[1].name) if python else None for name, python in found.items()}


@lru_cache(maxsize=1)
def _lasting() -> Circumstances:
    host = read_host()
    return Circumstances(
        source=source_digest(
            *(Path(str(importlib.import_module(p).__file__)).parent for p in _PACKAGES)
        ),
        recipes=tuple(recipe.id for recipe in recipes.all_recipes()),
        packages=_packages(),
        environments={},
        python=sys.version,
        arch=host.arch,
        core=host.core,
        features=tuple(sorted(host.features)),
        cores=host.cores,
    )


def source_digest(*roots: Path) -> str:
    """Of the Python modules below these directories, with their names."""
    found = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            data = path.read_bytes()
            found.update(f"{root.name}/{path.relative_to(root)} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _packages() -> dict[str, str]:
    found = {"edgekit": importlib.metadata.version("edgekit")}
    for requirement in importlib.metadata.requires("edgekit") or ():
        named = _REQUIREMENT.match(requirement)
        assert named is not None
        try:
            found[named[0]] = importlib.metadata.version(named[0])
        except importlib.metadata.PackageNotFoundError:
            continue
    for group in (recipes.ENTRY_POINTS, doors.ENTRY_POINTS, plugins.GROUP):
        for point in importlib.metadata.entry_points(group=group):
            if point.dist is not None:
                found[point.dist.name] = point.dist.version
    return found


def key_of(ingredients: Mapping[str, object]) -> str:
    """SHA-256 of the ingredients as canonical JSON, `circumstances` included."""
    whole = {**ingredients, "circumstances": circumstances()}
    return hashlib.sha256(msgspec.json.encode(whole, order="deterministic")).hexdigest()


def repeatable_model(request: BuildRequest) -> Path | None:
    """The model's file, where a key can tell all that the result depends on: what code of the
    user's makes or measures is known to nobody but itself."""
    model = request.model
    if isinstance(model, str) or not model.is_file() or is_callable_name(request.metric):
        return None
    return model


def result_key(
    request: BuildRequest, profile: Profile, *, model: Mapping[str, str], data: Mapping[str, object]
) -> str:
    """Of what is built for one of the request's profiles.

    `model` has the digests of the model's files, `data` those of DATA, by what they are for.
    """
    asked = {
        field.name: getattr(request, field.name)
        for field in fields(request)
        if field.name not in APART
    }
    return key_of(
        {
            "model": {"name": Path(request.model).name, "files": model},
            "data": data,
            "request": asked,
            "profile": profile,
            "figures": _figures(request),
            "search_time_s": request.search_time_s / len(request.profiles),
        }
    )


def _figures(request: BuildRequest) -> str | None:
    """Digest of what devices measured: it has its part in the choice."""
    path = request.figures or default_path()
    return sha256_of(path) if path.is_file() else None
