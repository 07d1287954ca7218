"""The registry of recipes: what each declares, and how other packages add theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit_profiles
from edgekit_contract.compatibility import version_tuple
from edgekit_contract.errors import Refused
from edgekit_contract.profile import FEATURES, RuntimeKind
from edgekit_converters import graph
from edgekit_converters.calibration.estimators import Range
from edgekit_converters.facts import ModelFacts, read_facts, weight_bytes
from edgekit_converters.quantization.halves import compute_in_half
from edgekit_converters.quantization.int16 import quantize_16x8
from edgekit_converters.recipes import BASELINE, all_recipes, find_recipe
from edgekit_converters.recipes.recipe import Ingredients, Recipe
from edgekit_converters.runtime_operators import newer_than
from edgekit_runtime.backend_onnxruntime import is_ort_format
from edgekit_runtime.session import open_session

MODULE = """
import shutil
from edgekit_converters.recipes.recipe import Needs, Recipe

def make(ingredients):
    shutil.copyfile(ingredients.given, ingredients.out)

RECIPES = (
    Recipe(id="ternary/plain", title="three levels", needs=Needs(), make=make, output_step=0.5),
)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path with a package in it, as pip leaves one."""
    (tmp_path / "ternary_recipes.py").write_text(MODULE)
    metadata = tmp_path / "ternary_recipes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ternary-recipes\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text("[edgekit.recipes]\nternary = ternary_recipes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    all_recipes.cache_clear()
    yield metadata
    all_recipes.cache_clear()
    sys.modules.pop("ternary_recipes", None)


def test_recipe_of_an_installed_package_is_found(installed: Path, tmp_path: Path) -> None:
    recipe = find_recipe("ternary/plain")
    (tmp_path / "given").write_bytes(b"model")
    out = tmp_path / "out"
    recipe.make(
        Ingredients(given=tmp_path / "given", normalized=tmp_path / "given", ranges={}, out=out)
    )
    assert out.read_bytes() == b"model"


def test_recipe_under_a_taken_id_is_refused(installed: Path, tmp_path: Path) -> None:
    taken = MODULE.replace("ternary/plain", "int16x8")
    (tmp_path / "ternary_recipes.py").write_text(taken)
    with pytest.raises(RuntimeError, match="two recipes have one id"):
        all_recipes()


def test_baseline_is_first_and_variations_vary_what_is_there() -> None:
    recipes = all_recipes()
    ids = {recipe.id for recipe in recipes}
    assert recipes[0].id == BASELINE
    assert all(recipe.varies is None or recipe.varies in ids - {recipe.id} for recipe in recipes)
    # going from one to what it varies ends at something that varies nothing
    varied = {recipe.id: recipe.varies for recipe in recipes}
    for start, parent in varied.items():
        steps, at = 0, parent
        while at is not None and steps <= 2:
            steps, at = steps + 1, varied[at]
        assert at is None, start


def test_declared_features_are_known() -> None:
    assert all(recipe.needs.features <= FEATURES for recipe in all_recipes())


@pytest.mark.parametrize(
    ("profile", "expected"),
    [("raspberry-pi-4", "asimdhp"), ("linux-x86-64", "asimdhp"), ("jetson-orin-nano", None)],
)
def test_float16_arithmetic_needs_a_core_that_has_it(profile: str, expected: str | None) -> None:
    held = edgekit_profiles.load(profile)
    runtime = held.runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None
    facts = ModelFacts(size_bytes=1000, opset=17, ir=8, weighted={"Conv": 3})
    needs = find_recipe("float16/arithmetic").needs
    reason = needs.unmet(facts, runtime, held.cpu, host_saturates=False)
    assert (reason is None) if expected is None else (reason is not None and expected in reason)


def network(directory: Path, *, classes: int = 40) -> Path:
    """Convolutions with a residual sum between, and a Gemm."""

    def weight(name: str, *shape: int) -> TensorProto:
        values = np.random.default_rng(len(name)).standard_normal(shape) / 6
        return numpy_helper.from_array(values.astype(np.float32), name)

    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        make("Clip", ["c", "low", "high"], ["k"], name="clip"),
        make("Conv", ["k", "dd"], ["d"], name="depthwise", group=32, pads=[1, 1, 1, 1]),
        make("Add", ["d", "k"], ["a"], name="residual"),
        make("GlobalAveragePool", ["a"], ["p"], name="pool"),
        make("Flatten", ["p"], ["f"], name="flat"),
        make("Gemm", ["f", "ggg"], ["y"], name="last"),
    ]
    inner = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
        [
            weight("w", 32, 8, 3, 3),
            weight("b", 32),
            weight("dd", 32, 1, 3, 3),
            weight("ggg", 32, classes),
            numpy_helper.from_array(np.array(0, np.float32), "low"),
            numpy_helper.from_array(np.array(np.inf, np.float32), "high"),
        ],
    )
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    onnx.save_model(model, directory / "network.onnx")
    return directory / "network.onnx"


def error(path: Path, out: Path) -> float:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 12, 12)).astype(np.float32)}
    want, got = (open_session(RuntimeKind.ONNXRUNTIME, p).run(feeds)["y"] for p in (path, out))
    assert got.dtype == np.float32
    return float(np.abs(got - want).max() / np.abs(want).max())


def test_float16_lies_between_convolutions_only(tmp_path: Path) -> None:
    path, out = network(tmp_path), tmp_path / "half.onnx"
    compute_in_half(path, out)
    assert 0 < error(path, out) < 5e-3
    nodes = {n.name: n for n in onnx.load_model(out).graph.node}
    # the sum reads what is cast back; the clamp's own result goes on in float16
    assert list(nodes["residual"].input) == ["d", "k"]
    assert nodes["depthwise"].input[0] == nodes["clip"].output[0] != "k"
    assert graph.operators(onnx.load_model(out))["Cast"] == 3
    compute_in_half(path, out, spared=("depthwise",))
    spared = {n.name: n for n in onnx.load_model(out).graph.node}
    assert list(spared["depthwise"].input) == ["k", "dd"]


def test_int16_activations_change_less_than_8_bit_weights_alone_do(tmp_path: Path) -> None:
    path, out = network(tmp_path), tmp_path / "wide.onnx"
    ranges = {name: Range(low=-8.0, high=8.0) for name in ("x", "k", "d", "a", "p", "f", "y")}
    quantize_16x8(path, out, ranges=ranges)
    counted = graph.operators(onnx.load_model(out))
    assert counted["com.microsoft:QuantizeLinear"] == 3
    assert out.stat().st_size < 0.6 * path.stat().st_size
    assert 0 < error(path, out) < 0.01
    with pytest.raises(Refused, match="no node"):
        quantize_16x8(path, out, ranges={})


OLDEST = "1.12"
"""The first onnxruntime whose operators are known."""


@pytest.mark.parametrize(
    "recipe",
    [r for r in all_recipes()[1:] if r.needs.runtime is RuntimeKind.ONNXRUNTIME],
    ids=lambda recipe: recipe.id,
)
def test_recipe_makes_only_operators_of_the_runtime_that_it_names(
    recipe: Recipe, tmp_path: Path
) -> None:
    path, out = network(tmp_path, classes=2048), tmp_path / "out.onnx"
    ranges = {name: Range(low=-8.0, high=8.0) for name in ("x", "c", "k", "d", "a", "p", "f", "y")}
    recipe.make(Ingredients(given=path, normalized=path, ranges=ranges, out=out))
    named = max(OLDEST, recipe.needs.min_runtime_version, key=version_tuple)
    assert newer_than(named, read_facts(out).operators) == {}


def test_file_of_the_runtimes_own_format_is_known_by_its_contents(tmp_path: Path) -> None:
    path, out = network(tmp_path), tmp_path / "model.onnx"
    recipe = find_recipe("ort-format")
    recipe.make(Ingredients(given=path, normalized=path, ranges={}, out=out))
    assert is_ort_format(out) and not is_ort_format(path)
    assert error(path, out) < 1e-4
    facts = read_facts(out)
    assert (facts.size_bytes, facts.opset, facts.ir) == (out.stat().st_size, None, None)
    assert weight_bytes(out) == {}


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_model_of_other_numbers_is_said_to_have_them(tmp_path: Path, kind: type) -> None:
    tensor = numpy_helper.from_array(np.ones((64, 64), kind), "w")
    number = tensor.data_type
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            "g",
            [helper.make_tensor_value_info("x", number, [1, 64])],
            [helper.make_tensor_value_info("y", number, [1, 64])],
            [tensor],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "m.onnx")
    facts = read_facts(tmp_path / "m.onnx")
    profile = edgekit_profiles.load("linux-x86-64")
    runtime = profile.runtime(RuntimeKind.ONNXRUNTIME)
    assert runtime is not None
    name = {np.float16: "float16", np.float64: "double"}[kind]
    for recipe in ("int8-dynamic/per-channel", "float16/weights", "int16x8"):
        reason = find_recipe(recipe).needs.unmet(facts, runtime, profile.cpu, host_saturates=False)
        assert reason == f"the model's weights are {name} already, not float32"
