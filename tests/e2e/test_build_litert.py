"""LiteRT out: ONNX models converted and quantized, LiteRT models searched, each proved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from build_requests import DIGITS, host_profile, request
from litert_models import halves, stateful_file, whole_int8
from onnx import TensorProto, helper
from parts import need_package
from real_models import package_directory
from tools import need_environment

import edgekit_profiles
from edgekit.build import Built, build
from edgekit.build.report import Candidate, Outcome
from edgekit.build.request import Objective
from edgekit.release.keys import PrivateKey, new_key
from edgekit_contract.errors import Refused
from edgekit_contract.profile import Profile, Runtime, RuntimeKind
from edgekit_contract.trust import VerifiedBundle, verify_archive
from edgekit_converters import environments
from edgekit_converters.recipes import all_recipes
from edgekit_runtime.golden import check_golden, read_golden
from edgekit_runtime.session import installed_runtimes, open_session, options_for

DATA = {
    "calibration": str(DIGITS / "calibration.npz"),
    "validation": str(DIGITS / "validation.npz"),
}
LITERT = [r.id for r in all_recipes() if r.needs.runtime is RuntimeKind.LITERT]


@pytest.fixture(scope="module", autouse=True)
def tools(empty_cache: Path) -> Iterator[None]:
    need_package("ai_edge_litert", install="pip install 'edgekit[tflite]'")
    cache = need_environment(environments.LITERT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(cache))
        yield


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    return new_key(tmp_path_factory.mktemp("key") / "k", None)


def profile(name: str, *kinds: RuntimeKind) -> Profile:
    """This machine, with these runtimes."""
    versions = installed_runtimes()
    return msgspec.structs.replace(
        host_profile(),
        name=name,
        runtimes=tuple(
            Runtime(
                kind=kind,
                version=versions[kind],
                python="3.11",
                threads=1,
                max_ir=14 if kind is RuntimeKind.ONNXRUNTIME else None,
                max_opset=28 if kind is RuntimeKind.ONNXRUNTIME else None,
            )
            for kind in kinds
        ),
    )


BOTH = (RuntimeKind.ONNXRUNTIME, RuntimeKind.LITERT)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, key: PrivateKey) -> tuple[Built, Built]:
    """Digits for a device with LiteRT alone, and for one with both runtimes."""
    made = build(
        request(
            DIGITS / "digits.onnx",
            tmp_path_factory.mktemp("digits"),
            profiles=(profile("lite", RuntimeKind.LITERT), profile("both", *BOTH)),
            recipes=("litert/*",),
            objective=Objective.SIZE,
            key=key,
            **DATA,
        )
    )
    return made.built[0], made.built[1]


@pytest.fixture(scope="module")
def converted(digits: tuple[Built, Built], key: PrivateKey, tmp_path_factory: object) -> bytes:
    """Digits as a float LiteRT model: what a build without any other recipe packs."""
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    made = build(
        request(
            DIGITS / "digits.onnx",
            tmp_path_factory.mktemp("float"),
            profiles=(profile("lite", RuntimeKind.LITERT),),
            recipes=("litert/float32",),
            key=key,
        )
    )
    bundle = verify_archive(made.built[0].bundle.path, [key.public])
    return bundle.read(bundle.manifest.model)


def candidates(built: Built) -> dict[str, Candidate]:
    return {c.recipe: c for c in built.report.candidates}


def opened(built: Built, key: PrivateKey) -> VerifiedBundle:
    return verify_archive(built.bundle.path, [key.public])


def reproduces(bundle: VerifiedBundle, directory: Path) -> bool:
    manifest = bundle.manifest
    path = directory / Path(manifest.model).name
    path.write_bytes(bundle.read(manifest.model))
    session = open_session(manifest.runtime, path, options_for(manifest))
    vectors = read_golden(
        bundle.read(manifest.golden.path), manifest.golden, session.inputs, session.outputs
    )
    return check_golden(session, manifest.golden, vectors) is None


def test_device_with_litert_alone_gets_an_onnx_model(
    digits: tuple[Built, Built], key: PrivateKey, tmp_path: Path
) -> None:
    built = digits[0]
    found, bundle = candidates(built), opened(built, key)
    manifest = bundle.manifest
    assert manifest.runtime is RuntimeKind.LITERT and manifest.model.endswith(".tflite")
    image, logits = manifest.inputs[0], manifest.outputs[0]
    assert (image.name, image.dtype, image.shape) == ("image", "float32", ("batch", 1, 28, 28))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", ("batch", 10))
    assert reproduces(bundle, tmp_path)
    assert not [c for c in found.values() if c.outcome is Outcome.FAILED]
    assert set(LITERT) <= set(found)
    assert (found["litert/float32"].closeness_db or 0) > 90
    assert (found["litert/int8-static"].closeness_db or 0) > 15
    assert built.report.chosen.startswith("litert/int")
    assert manifest.provenance.tools["onnx2tf"]


def test_both_runtimes_are_timed_against_the_onnx_model(digits: tuple[Built, Built]) -> None:
    found = candidates(digits[1])
    assert next(iter(found)) == "float32"
    assert found["float32"].latency is not None and found["float32"].latency.ratio == 1.0
    timed = [name for name, c in found.items() if c.latency is not None]
    assert "litert/float16" in timed and "litert/int8-dynamic" in timed


def test_onnx_variants_win_where_they_are_better(tmp_path: Path, key: PrivateKey) -> None:
    """The same contest: a runtime is chosen by figures."""
    made = build(
        request(
            DIGITS / "digits.onnx",
            tmp_path,
            profiles=(profile("both", *BOTH),),
            recipes=("int8-weights/per-channel", "litert/float16"),
            objective=Objective.SIZE,
            key=key,
            **DATA,
        )
    )
    bundle = opened(made.built[0], key)
    assert made.built[0].report.chosen == "int8-weights/per-channel"
    assert bundle.manifest.runtime is RuntimeKind.ONNXRUNTIME
    assert made.built[0].report.runtime.startswith("onnxruntime")


def test_float_litert_model_is_searched_and_the_given_one_is_the_baseline(
    converted: bytes, tmp_path: Path, key: PrivateKey
) -> None:
    model = tmp_path / "digits.tflite"
    model.write_bytes(converted)
    made = build(
        request(
            model,
            tmp_path / "out",
            profiles=(profile("lite", RuntimeKind.LITERT),),
            recipes=("litert/int8-static", "litert/float16"),
            objective=Objective.SIZE,
            key=key,
            **DATA,
        )
    )
    found = candidates(made.built[0])
    assert found["float32"].size_bytes == len(converted)
    assert found["litert/int8-static"].outcome is Outcome.CHOSEN
    assert found["litert/float32"].reason == "the model is of litert as it is"
    report = made.built[0].report
    assert report.sizes["int8"] > 30_000 and report.model is not None
    assert report.model.operators["CONV_2D"] == 5
    assert reproduces(opened(made.built[0], key), tmp_path)


def test_litert_model_of_narrow_weights_or_inputs_is_packed_as_it_is(
    converted: bytes, tmp_path: Path, key: PrivateKey
) -> None:
    python = environments.find(environments.LITERT)
    assert python is not None
    plain, model = tmp_path / "plain.tflite", tmp_path / "int8.tflite"
    plain.write_bytes(converted)
    whole_int8(python, plain, DIGITS / "calibration.npz", model)
    made = build(
        request(model, tmp_path / "out", profiles=(profile("lite", RuntimeKind.LITERT),), key=key)
    )
    bundle, report = opened(made.built[0], key), made.built[0].report
    assert report.chosen == "float32" and bundle.manifest.inputs[0].dtype == "int8"
    assert "no float32 weights" in candidates(made.built[0])["litert/int8-dynamic"].reason
    assert reproduces(bundle, tmp_path)


def test_litert_model_with_float16_weights_is_searched_as_well(
    converted: bytes, tmp_path: Path, key: PrivateKey
) -> None:
    python = environments.find(environments.LITERT)
    assert python is not None
    plain, model = tmp_path / "plain.tflite", tmp_path / "halves.tflite"
    plain.write_bytes(converted)
    halves(python, plain, model)
    made = build(
        request(
            model,
            tmp_path / "out",
            profiles=(profile("lite", RuntimeKind.LITERT),),
            recipes=("litert/int8-weights",),
            objective=Objective.SIZE,
            max_drop=0.05,
            key=key,
        )
    )
    found = candidates(made.built[0])["litert/int8-weights"]
    assert found.outcome is Outcome.CHOSEN, found.reason
    assert (found.size_bytes or 0) < 0.75 * model.stat().st_size
    assert "float16" not in made.built[0].report.sizes


def test_litert_model_with_state_is_quantized_and_reproduces_its_golden_vectors(
    tmp_path: Path, key: PrivateKey
) -> None:
    model, data = tmp_path / "sum.tflite", tmp_path / "data.npz"
    model.write_bytes(stateful_file(64))
    rows = np.random.default_rng(1).normal(size=(12, 64)).astype(np.float32)
    np.savez(data, x=rows)
    made = build(
        request(
            model,
            tmp_path / "out",
            profiles=(profile("lite", RuntimeKind.LITERT),),
            recipes=("litert/float16", "litert/int8-weights"),
            validation=str(data),
            metric="cosine",
            objective=Objective.SIZE,
            key=key,
        )
    )
    assert made.built[0].report.chosen == "litert/int8-weights"
    assert reproduces(opened(made.built[0], key), tmp_path)


def test_model_that_cannot_be_converted_is_refused_with_the_reason(tmp_path: Path) -> None:
    """LiteRT has no determinant, and onnx2tf writes an operator of its own for it."""
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = tmp_path / "det.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), model)
    with pytest.raises(Refused, match=r"det\.onnx cannot be converted for litert .*ONNX_DET"):
        build(request(model, tmp_path, profiles=(profile("lite", RuntimeKind.LITERT),)))
    made = build(
        request(model, tmp_path, profiles=(profile("both", *BOTH),), recipes=("litert/float*",))
    )
    lost = candidates(made.built[0])["litert/float32"]
    assert lost.outcome is Outcome.FAILED and "ONNX_DET" in lost.reason


def test_both_runtimes_have_estimates_for_a_device_that_is_not_here(
    tmp_path: Path, key: PrivateKey
) -> None:
    pi = edgekit_profiles.load("raspberry-pi-4")
    assert {runtime.kind for runtime in pi.runtimes} == set(BOTH)
    (made,) = build(
        request(
            DIGITS / "digits.onnx", tmp_path, profiles=(pi,), name="m", key=key, **DATA,
            objective=Objective.LATENCY,
            recipes=("float32*", "litert/float32", "litert/int8-static"),
        )
    ).built  # fmt: skip
    found = {candidate.recipe: candidate.estimate for candidate in made.report.candidates}
    for recipe in ("float32", "litert/float32", "litert/int8-static"):
        estimate = found[recipe]
        assert estimate is not None and 0 < estimate.low < estimate.ms < estimate.high, recipe
    told = " ".join(made.report.remarks)
    assert "Times on raspberry-pi-4 are estimates of cortex-a72" in told


def words_model(path: Path, *, ids: int) -> Path:
    """The mean of a table's rows, multiplied: open batch and length, as of an encoder of text."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.standard_normal((3000, 64)).astype(np.float32),
        "matrix": random.standard_normal((64, 64)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", ids, ["batch", "length"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save_model(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("recipe", ["litert/int8-dynamic", "litert/int8-weights"])
def test_tables_are_narrow_and_lookups_take_any_batch_and_length(
    kind: int, recipe: str, tmp_path: Path, key: PrivateKey
) -> None:
    model = words_model(tmp_path / "words.onnx", ids=kind)
    random = np.random.default_rng(1)
    data = tmp_path / "data"
    data.mkdir()
    width = helper.tensor_dtype_to_np_dtype(kind)
    for index in range(40):
        ids = random.integers(0, 3000, (1 + index % 3, 4 + index % 7)).astype(width)
        np.savez(data / f"{index:02}.npz", ids=ids)
    made = build(
        request(
            model, tmp_path / "out", profiles=(profile("lite", RuntimeKind.LITERT),), key=key,
            validation=str(data), recipes=("litert/float32", recipe), name="words",
            objective=Objective.SIZE, max_drop=0.02,
        )
    )  # fmt: skip
    found = candidates(made.built[0])
    assert made.built[0].report.chosen == recipe
    narrow, wide = (found[name].size_bytes or 0 for name in (recipe, "litert/float32"))
    assert narrow < 0.32 * wide
    assert (found[recipe].closeness_db or 0) > 25
    assert reproduces(opened(made.built[0], key), tmp_path)


@pytest.mark.parametrize("has_data", [True, False])
def test_litert_model_whose_lengths_the_data_tell_is_built(
    has_data: bool, tmp_path: Path, key: PrivateKey
) -> None:
    """openWakeWord's spectrogram does not load at the length that its file says."""
    need_package("pyopen_wakeword", install="scripts/models")
    model = package_directory("pyopen_wakeword") / "models" / "melspectrogram.tflite"
    (given,) = open_session(RuntimeKind.LITERT, model).inputs
    sound = np.random.default_rng(0).standard_normal((12, 1280)).astype(np.float32)
    np.savez(tmp_path / "sound.npz", **{given.name: 1000 * sound})
    made = build(
        request(
            model, tmp_path / "out", profiles=(profile("lite", RuntimeKind.LITERT),), key=key,
            validation=str(tmp_path / "sound.npz") if has_data else None,
            metric="cosine" if has_data else "auto", recipes=("litert/float16",), name="mel",
        )
    )  # fmt: skip
    bundle = opened(made.built[0], key)
    assert bundle.manifest.inputs[0].shape == ("axis0", "axis1")
    assert reproduces(bundle, tmp_path)
