"""Four real models from packages, on real data. `scripts/models` installs them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_models
from build_real_models import this_machine
from build_requests import INT8, host_profile, request
from parts import need_package, need_path
from real_models import RealModel

from edgekit.build import BuildResult, build
from edgekit.build.data import open_data
from edgekit.build.report import Candidate, Outcome, Report
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract.manifest import Manifest
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.trust import verify_archive
from edgekit_runtime.golden import check_golden, read_golden
from edgekit_runtime.session import open_session, options_for


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("key") / "k", None)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    report: Report
    manifest: Manifest
    model: Path
    """The variant, taken out of the bundle."""

    @property
    def candidates(self) -> dict[str, Candidate]:
        return {c.title: c for c in self.report.candidates}

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.report.chosen]


def built(
    real: RealModel, directory: Path, key: PrivateKey, *recipes: str, **changes: Any
) -> Outcomes:
    """Build, verify the bundle and demand that it reproduces its golden vectors."""
    result: BuildResult = build(
        request(
            real.model,
            directory / "out",
            key=key,
            name=real.name,
            calibration=str(real.calibration) if real.calibration else None,
            validation=str(real.validation),
            metric=real.metric,
            recipes=recipes,
            **{"profiles": (host_profile(),), **changes},
        )
    )
    bundle = verify_archive(result.built[0].bundle.path, [key.public])
    manifest = bundle.manifest
    model = directory / Path(manifest.model).name
    model.write_bytes(bundle.read(manifest.model))
    session = open_session(manifest.runtime, model, options_for(manifest))
    vectors = read_golden(
        bundle.read(manifest.golden.path), manifest.golden, session.inputs, session.outputs
    )
    assert check_golden(session, manifest.golden, vectors) is None
    return Outcomes(report=result.built[0].report, manifest=manifest, model=model)


def assert_gains(found: Outcomes, *, size: float) -> None:
    """The chosen variant is as small as that part of float32, no slower, and within the bound."""
    baseline, chosen = found.candidates["float32"], found.chosen
    assert chosen.size_bytes is not None and baseline.size_bytes is not None
    assert chosen.size_bytes < size * baseline.size_bytes
    assert chosen.latency is not None and not chosen.latency.is_slower
    assert chosen.score is not None and baseline.score is not None
    assert chosen.score.value >= baseline.score.value - found.report.max_drop


def need_sounds() -> None:
    need_path(real_models.SOUNDS, install="apt-get install asterisk-core-sounds-en-wav")


STATIC = f"int8-static/per-channel/{INT8}/minmax"


def test_efficientnet_in_int8_agrees_with_float_and_recognizes_16_of_20_photographs(
    tmp_path: Path, key: PrivateKey
) -> None:
    for module in ("torch", "efficientnet_lite_pytorch", "foolbox"):
        need_package(module, install="-r benchmarks/models.txt torch==2.13.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        real = real_models.efficientnet(tmp_path, crops=20, validation_crops=60)
    recipes = f"int8-static/per-channel/{INT8}/*"
    found = built(real, tmp_path, key, recipes, max_drop=0.05)  # 3 of 60 crops
    assert found.report.metric == "agreement"
    assert found.report.chosen.startswith("int8-static/")
    assert_gains(found, size=0.3)
    assert right_of_20(real, real.model) == 17
    assert right_of_20(real, found.model) >= 16


def right_of_20(real: RealModel, model: Path) -> int:
    """How many of the whole photographs, which no build has seen, a model recognizes."""
    session = open_session(RuntimeKind.ONNXRUNTIME, model)
    return sum(
        int((session.run(s.feeds)["scores"].argmax(1) == s.labels).sum())
        for s in open_data(str(real.labelled)).samples(session.inputs)
    )


def test_minilm_comes_out_a_quarter_as_large(tmp_path: Path, key: PrivateKey) -> None:
    for module in ("torch", "all_minilm_l6_v2", "tokenizers"):
        need_package(module, install="-r benchmarks/models.txt torch==2.13.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        real = real_models.minilm(tmp_path, sentences=36)
    recipes = ("int8-weights/per-channel", "int8-dynamic/per-channel")
    found = built(real, tmp_path, key, *recipes, profiles=(this_machine(),))
    assert_gains(found, size=0.3)


def test_magika_in_int8_tells_file_types_as_float_does(tmp_path: Path, key: PrivateKey) -> None:
    need_package("magika", install="-r benchmarks/models.txt")
    real = real_models.magika(tmp_path, per_type=10)
    found = built(real, tmp_path, key, STATIC, "int8-dynamic/*")
    baseline, int8 = found.candidates["float32"], found.candidates[STATIC]
    assert baseline.score is not None and baseline.score.value > 0.8
    assert int8.score is not None and int8.score.value >= baseline.score.value - 0.02
    assert_gains(found, size=0.4)


def test_silero_vad_comes_out_correct_though_its_weights_are_in_branches(
    tmp_path: Path, key: PrivateKey
) -> None:
    need_package("silero_vad", install="-r benchmarks/models.txt")
    need_sounds()
    real = real_models.silero_vad(tmp_path, clips=8, frames=40)
    found = built(real, tmp_path, key)
    assert all(
        c.outcome is Outcome.SKIPPED for name, c in found.candidates.items() if "static" in name
    )
    variant = open_session(RuntimeKind.ONNXRUNTIME, found.model)
    given = open_session(RuntimeKind.ONNXRUNTIME, real.model)
    decisions = [
        [float(session.run(s.feeds)["output"][0, 0]) > 0.5 for session in (variant, given)]
        for s in open_data(str(real.validation)).samples(given.inputs)
    ]
    agree = np.mean([ours == theirs for ours, theirs in decisions])
    assert agree > 0.98
    assert 0.1 < np.mean([theirs for _, theirs in decisions]) < 0.95  # speech and pauses


def test_basic_pitch_is_not_spoiled_by_int8(tmp_path: Path, key: PrivateKey) -> None:
    need_package("basic_pitch", install="-r benchmarks/models.txt")
    need_sounds()
    real = real_models.basic_pitch(tmp_path, windows=8)
    found = built(real, tmp_path, key, STATIC)
    int8 = found.candidates[STATIC]
    assert int8.outcome is Outcome.LOST
    assert int8.score is not None and int8.score.value < 0.9  # its constant-Q front end is wide
    assert found.chosen.score is not None and found.chosen.score.value > 0.99


def test_basic_pitch_as_tflite_is_packed_as_it_is(tmp_path: Path, key: PrivateKey) -> None:
    need_package("basic_pitch", install="-r benchmarks/models.txt")
    need_sounds()
    real = real_models.basic_pitch(tmp_path, windows=8, tflite=True)
    found = built(real, tmp_path, key)
    assert found.manifest.runtime is RuntimeKind.LITERT
    assert found.model.read_bytes() == real.model.read_bytes()
    assert [c.recipe for c in found.report.candidates if c.outcome is not Outcome.SKIPPED] == [
        "float32"
    ]
