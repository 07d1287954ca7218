"""Models that come through doors, as tests of each framework need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from build_requests import request

from edgekit.build import BuildResult, build
from edgekit.build.data import open_data
from edgekit.build.material import Material, gather
from edgekit.build.report import Report
from edgekit.release.keys import PrivateKey
from edgekit_contract.manifest import Manifest
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.trust import verify_archive
from edgekit_converters.isolation import Workshop
from edgekit_converters.sources import open_source
from edgekit_runtime.golden import check_golden, read_golden
from edgekit_runtime.session import open_session, options_for

DOORS = "scripts/models installs what the doors need"
BUSY_S = 300.0
"""A conversion may take this long on a machine that does other things, too."""


def built(model: Path | str, out: Path, key: PrivateKey, **changes: Any) -> tuple[Report, Manifest]:
    """Build, verify the bundle, and demand that it reproduces its golden vectors."""
    values: dict[str, Any] = {"name": "m", "recipes": ("float32-optimized",), "key": key}
    values |= {"conversion_time_s": BUSY_S} | changes
    result: BuildResult = build(request(model, out / "bundles", **values))
    bundle = verify_archive(result.built[0].bundle.path, [key.public])
    manifest = bundle.manifest
    (out / "variant.onnx").write_bytes(bundle.read(manifest.model))
    session = open_session(manifest.runtime, out / "variant.onnx", options_for(manifest))
    vectors = read_golden(
        bundle.read(manifest.golden.path), manifest.golden, session.inputs, session.outputs
    )
    assert check_golden(session, manifest.golden, vectors) is None
    return result.built[0].report, manifest


def through_the_door(model: Path | str, data: str, scratch: Path, workshop: Workshop) -> Material:
    """What the build works with: converted, compared, loaded and run."""
    inner = scratch / "scratch"
    inner.mkdir()
    source = open_source(model, scratch=inner, run=workshop.run, conversion_s=BUSY_S)
    return gather(source, None, open_data(data), normalizes=False, scratch=inner, run=workshop.run)


def assert_compared(remarks: Sequence[str], framework: str, samples: int) -> None:
    said = next(text for text in remarks if text.startswith("Converted from"))
    assert said.startswith(f"Converted from {framework}")
    assert f"compared with it on {samples} samples of" in said
    assert "the greatest difference is" in said


def right(material: Material, output: str) -> float:
    """Share of the samples whose greatest score is at the label."""
    session = open_session(RuntimeKind.ONNXRUNTIME, material.source.path)
    hits = [
        session.run(sample.feeds)[output].argmax(-1) == sample.labels
        for sample in material.samples()
    ]
    return float(np.mean(hits))
