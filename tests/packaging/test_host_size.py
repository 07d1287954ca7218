"""What `pip install edgekit[host]` brings: nothing heavy, and less than 400 MB of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement

MOST_BYTES = 400_000_000


def closure(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Names of a distribution and all that it requires here, as installed."""
    key = (name.lower().replace("_", "-"), extras)
    if key in seen:
        return set()
    seen.add(key)
    found = {key[0]}
    for text in importlib.metadata.requires(name) or ():
        wanted = Requirement(text)
        asked = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if wanted.marker is None or any(wanted.marker.evaluate(e) for e in asked):
            found |= closure(wanted.name, frozenset(wanted.extras), seen)
    return found


def sizes(names: set[str]) -> Iterator[int]:
    for name in names:
        for file in importlib.metadata.files(name) or ():
            path = file.locate()
            if path.is_file():
                yield path.stat().st_size


def test_host_install_is_small_and_has_no_training_framework() -> None:
    names = closure("edgekit", frozenset({"host"}), set())
    assert {"onnx", "onnxruntime", "sqlalchemy"} <= names
    assert not names & {"torch", "tensorflow", "jax", "transformers", "ai-edge-litert"}
    assert sum(sizes(names)) < MOST_BYTES
