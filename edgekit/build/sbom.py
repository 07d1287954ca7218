"""A bundle's bill of materials: CycloneDX 1.6 (ECMA-424) as JSON. Pure.

It names the model and the files beside it, the file that it was made of, the runtime that it needs
and the tools that made it. Invariant: the same facts give the same bytes; there is no time and no
serial number in it, since the bundle's envelope says which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from edgekit_contract.manifest import FileEntry, Provenance
from edgekit_contract.profile import RuntimeKind

__all__ = ["SBOM_PATH", "sbom_bytes"]

SBOM_PATH: Final = "files/sbom.json"
_PACKAGES: Final = {RuntimeKind.ONNXRUNTIME: "onnxruntime", RuntimeKind.LITERT: "ai-edge-litert"}
"""Distributions on PyPI."""


def sbom_bytes(
    *,
    name: str,
    version: str,
    profile: str,
    runtime: RuntimeKind,
    min_runtime_version: str,
    model: str,
    files: Sequence[FileEntry],
    provenance: Provenance,
) -> bytes:
    """The document. `model` is the path of the model file among `files`, those of the variant."""
    digests = {file.path: file.sha256 for file in files}
    package = _PACKAGES.get(runtime, runtime.value)
    described: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "version": version,
        "hashes": _hashes(digests[model]),
        "pedigree": {"ancestors": [_source(provenance)], "notes": provenance.recipe},
        "properties": _properties({"edgekit:profile": profile, "edgekit:path": model}),
    }
    if provenance.calibration_sha256 is not None:
        described["properties"] += _properties(
            {"edgekit:calibration-sha256": provenance.calibration_sha256}
        )
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": described,
            "tools": {
                "components": [
                    _library(tool, provenance.tools[tool]) for tool in sorted(provenance.tools)
                ]
            },
        },
        "components": [
            {
                **(_unlisted(package) if runtime.is_plugin else _library(package)),
                "bom-ref": "runtime",
                "scope": "required",
                "properties": _properties({"edgekit:minimum-version": min_runtime_version}),
            },
            *(
                {"type": "file", "bom-ref": path, "name": path, "hashes": _hashes(digests[path])}
                for path in sorted(digests)
                if path != model
            ),
        ],
        "dependencies": [{"ref": "model", "dependsOn": ["runtime"]}],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def _source(provenance: Provenance) -> dict[str, Any]:
    source: dict[str, Any] = {
        "type": "machine-learning-model",
        "name": provenance.source_name,
        "hashes": _hashes(provenance.source_sha256),
    }
    if provenance.git_commit is not None:
        source["pedigree"] = {"commits": [{"uid": provenance.git_commit}]}
    return source


def _library(name: str, version: str | None = None) -> dict[str, Any]:
    found = {"type": "library", "name": name}
    suffix = ""
    if version is not None:
        found["version"] = version
        suffix = f"@{version.replace('+', '%2B')}"
    return {**found, "purl": f"pkg:pypi/{name}{suffix}"}


def _unlisted(name: str) -> dict[str, Any]:
    """A library of which nobody knows the package: one of that name may be a stranger's."""
    return {"type": "library", "name": name}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
