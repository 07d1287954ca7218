"""The JSON schema of a profile (draft 2020-12), for editors and for tools in other languages.

What it lets pass, `plausibility.mistakes` may still find wrong; what it refuses, nothing takes.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgekit_contract import names
from edgekit_contract.profile import FEATURES, PLUGIN_PATTERN, PROVIDERS, Profile, RuntimeKind

__all__ = ["json_schema"]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    schema = msgspec.json.schema(Profile)
    kinds = schema["$defs"]
    kinds["RuntimeKind"] = {
        "title": "RuntimeKind",
        "description": "One of edgekit's own, or the name of a runtime plug-in.",
        "anyOf": [
            {"enum": [kind.value for kind in RuntimeKind]},
            {"type": "string", "pattern": _portable(PLUGIN_PATTERN)},
        ],
    }
    kinds["Cpu"]["properties"]["features"]["items"] = {"enum": sorted(FEATURES)}
    kinds["Profile"]["properties"]["name"]["pattern"] = _portable(names.MODEL_NAME_PATTERN)
    kinds["Runtime"]["properties"]["providers"]["items"]["examples"] = list(PROVIDERS)
    return {"$schema": _DIALECT, "title": "edgekit profile", **schema}


def _portable(pattern: str) -> str:
    """A Python pattern with the anchors that JSON schema's dialect of expressions has."""
    return pattern.replace(r"\A", "^").replace(r"\Z", "$")
