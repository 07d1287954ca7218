"""Normalization keeps what a model computes, enters subgraphs, and says what it left out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array
from small_models import write_small

from edgekit_converters import graph, isolation
from edgekit_converters.isolation import Limits, Workshop
from edgekit_converters.normalization import Normalized, normalize, steps, structure
from edgekit_converters.proof import Trial, Tried, same_outputs, try_out
from edgekit_converters.tensorfile import read_tensors, write_tensors


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as opened:
        yield opened


def tried(tmp_path: Path, name: str) -> tuple[Path, tuple[Trial, ...]]:
    """A small model, and trials of it."""
    model = write_small(name, tmp_path)
    found = try_out(str(model), "onnxruntime", [], str(tmp_path))
    return model, msgspec.convert(found, Tried).trials


def test_constants_become_initializers_and_the_opset_is_raised(
    tmp_path: Path, workshop: Workshop
) -> None:
    model, trials = tried(tmp_path, "constant_nodes")
    found = normalize(model, trials=trials, scratch=tmp_path, run=workshop.run)
    normalized = onnx.load_model(found.path)
    assert not any(node.op_type == "Constant" for node in normalized.graph.node)
    assert normalized.opset_import[0].version >= 13
    assert found.remarks == ()


def test_step_that_changes_the_numbers_is_left_out_with_the_reason(
    tmp_path: Path, workshop: Workshop
) -> None:
    model, trials = tried(tmp_path, "regression")
    last = Path(trials[-1].reference)
    write_tensors(last, {n: a + 1 for n, a in read_tensors(last).items()})
    found = normalize(model, trials=trials, scratch=tmp_path, run=workshop.run)
    assert found.path == model
    assert found.steps == ()
    assert "changed the model" in found.remarks[0]


def test_simplification_that_crashes_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trials = tried(tmp_path, "regression")
    crashing = "import ctypes\n\ndef crash(**arguments):\n    ctypes.string_at(0)\n"
    (tmp_path / "broken_step.py").write_text(crashing)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
        broken = arguments["step"] == "fold"
        return isolation.run(step, "broken_step:crash" if broken else target, arguments, bounds)

    found = normalize(model, trials=trials, scratch=tmp_path, run=run)
    assert "simplification failed: it crashed" in found.remarks[0]
    assert "simplification without large constants" in found.steps


def test_steps_together_end_with_their_budget(tmp_path: Path, workshop: Workshop) -> None:
    """The clock goes 15 s on with each step: the second has 5 s left, the third none."""
    model, trials = tried(tmp_path, "regression")
    now, given = 0.0, []

    def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
        nonlocal now
        now += 15
        given.append(round(bounds.timeout_s))
        return workshop.run(step, target, arguments, bounds)

    found = normalize(model, trials=trials, scratch=tmp_path, run=run, clock=lambda: now)
    assert given == [20, 5]
    assert found.steps == ("constants to initializers", "simplification") and found.is_cut
    assert found.remarks == ("Normalization ended after 20 s, without fusion of operators.",)


def test_step_that_hangs_ends_with_the_budget_which_grows_with_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trials = tried(tmp_path, "regression")
    (tmp_path / "hanging_step.py").write_text(
        "import time\n\ndef hang(**arguments):\n    time.sleep(600)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(steps, "_BUDGET_S", 3.0)

    def run(step: str, target: str, arguments: Mapping[str, Any], bounds: Limits) -> Any:
        hangs = arguments["step"] == "fold"
        return isolation.run(step, "hanging_step:hang" if hangs else target, arguments, bounds)

    began = time.monotonic()
    found = normalize(model, trials=trials, scratch=tmp_path, run=run, run_s=1.0)
    assert 3 + 6 * 1.0 <= time.monotonic() - began < 30
    assert found.steps == ("constants to initializers",)
    assert found.remarks == (
        "Normalization ended after 9 s, without simplification, simplification without large "
        "constants, fusion of operators.",
    )


def test_difference_in_outputs_is_told() -> None:
    want = {"y": np.array([1.0, 2.0], np.float32)}
    assert same_outputs(want, want) is None
    assert same_outputs({"y": want["y"] * (1 + 1e-5)}, want) is None
    for got, said in (
        ({"z": want["y"]}, "outputs are"),
        ({"y": want["y"][:1]}, "[1]"),
        ({"y": want["y"].astype(np.float64)}, "float64"),
        ({"y": np.array([1.0, 2.1], np.float32)}, "1 of 2"),
        ({"y": np.array([1.0, np.nan], np.float32)}, "1 of 2"),
    ):
        assert said in str(same_outputs(got, want))


def _value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape) or None)


def _weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape)
    return from_array(values.astype(np.float32), name)


def _model(nodes: list[onnx.NodeProto], *constants: TensorProto, x: onnx.ValueInfoProto,
           opset: int = 13) -> ModelProto:  # fmt: skip
    inner = helper.make_graph(nodes, "g", [x], [_value("y")], initializer=constants)
    sets = [helper.make_opsetid("", opset)]
    return helper.make_model(inner, opset_imports=sets, ir_version=8)


def _branch(returned: str, *nodes: onnx.NodeProto, constants: tuple[TensorProto, ...] = ()
            ) -> GraphProto:  # fmt: skip
    return helper.make_graph(nodes, returned, [], [_value(returned)], initializer=constants)


def normalized(
    tmp_path: Path, model: ModelProto, workshop: Workshop
) -> tuple[Normalized, ModelProto]:
    """What normalization makes of a model, which must hold on every trial."""
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path)
    found = msgspec.convert(try_out(str(path), "onnxruntime", [], str(tmp_path)), Tried)
    done = normalize(path, trials=found.trials, scratch=tmp_path, run=workshop.run)
    return done, onnx.load_model(done.path)


def test_trials_see_open_axes_at_several_lengths(tmp_path: Path) -> None:
    path = write_small("dynamic_axes", tmp_path)
    found = msgspec.convert(try_out(str(path), "onnxruntime", [], str(tmp_path)), Tried)
    shapes = {read_tensors(Path(trial.feeds))["x"].shape for trial in found.trials}
    assert len({shape[2] for shape in shapes}) >= 3
    assert {shape[0] for shape in shapes} == {1, 2}


def test_model_that_is_random_is_found_out(tmp_path: Path) -> None:
    noise = helper.make_node("RandomNormalLike", ["x"], ["n"])
    model = _model([noise, helper.make_node("Add", ["x", "n"], ["y"])], x=_value("x", 1, 4))
    onnx.save_model(model, tmp_path / "m.onnx")
    found = try_out(str(tmp_path / "m.onnx"), "onnxruntime", [], str(tmp_path))
    assert not msgspec.convert(found, Tried).repeats


def test_branch_that_is_always_taken_is_inlined_with_its_names_apart(
    tmp_path: Path, workshop: Workshop
) -> None:
    """Two decided Ifs whose branches use the same names, one inside the other's branch."""

    def chosen(returned: str, source: str, *, nested: bool) -> onnx.NodeProto:
        level = "outer" if nested else "inner"
        product = f"{level} product"
        nodes = [helper.make_node("Identity", [source], [f"{level} same"]),
                 helper.make_node("MatMul", [f"{level} same", level], [product])]  # fmt: skip
        if nested:
            nodes.append(chosen("middle", product, nested=False))
            nodes.append(helper.make_node("Relu", ["middle"], ["out"]))
        else:
            nodes.append(helper.make_node("Neg", [product], ["result"]))
        name = nodes[-1].output[0]
        taken = _branch(name, *nodes, constants=(_weight(level, 6, 6),))
        other = _branch("z" + level, helper.make_node("Exp", [source], ["z" + level]))
        return helper.make_node("If", ["yes"], [returned], then_branch=taken, else_branch=other)

    yes = from_array(np.array(True), "yes")
    nodes = [chosen("a", "x", nested=True), chosen("y", "a", nested=False)]
    model = _model(nodes, yes, x=_value("x", 1, 6))
    before = model.SerializeToString()
    assert structure.simplify(onnx.load_model_from_string(before)) == 3
    done, after = normalized(tmp_path, model, workshop)
    assert done.remarks == ()
    assert "If" not in graph.operators(after) and "Exp" not in graph.operators(after)
    assert graph.operators(after)["MatMul"] == 3


def test_branch_that_returns_an_outer_value_or_one_value_twice_is_inlined(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["r"])
    twice = helper.make_graph([relu], "t", [], [_value("r"), _value("r")])
    other = helper.make_graph([relu], "e", [], [_value("r"), _value("r")])
    model = _model(
        [
            helper.make_node("If", ["no"], ["a", "b"], then_branch=twice, else_branch=other),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        from_array(np.array(False), "no"),
        x=_value("x", 1, 6),
    )
    structure.simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Add"]
    assert list(model.graph.node[1].input) == ["a", "a"]


def test_constants_and_passing_nodes_inside_subgraphs_go(
    tmp_path: Path, workshop: Workshop
) -> None:
    def branch(name: str, factor: float) -> GraphProto:
        weight = from_array(np.full((6, 6), factor, np.float32))
        return _branch(
            name,
            helper.make_node("Constant", [], ["w"], value=weight),
            helper.make_node("Identity", ["w"], ["v"]),
            helper.make_node("Dropout", ["x"], ["d"]),
            helper.make_node("MatMul", ["d", "v"], [name]),
        )

    model = _model(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["y"], then_branch=branch("t", 1),
                             else_branch=branch("e", 2)),
        ],
        from_array(np.float32(0), "zero"),
        x=_value("x", 1, 6),
    )  # fmt: skip
    done, after = normalized(tmp_path, model, workshop)
    assert done.remarks == ()
    assert set(graph.operators(after)) == {"ReduceSum", "Greater", "If", "MatMul"}
    inner = [g for g in graph.graphs(after.graph) if g is not after.graph]
    assert [len(g.initializer) for g in inner] == [1, 1]


def test_weight_used_twice_stays_one(tmp_path: Path, workshop: Workshop) -> None:
    """By two nodes, in a subgraph, and by a transposed product: folding would copy it."""
    table = _weight("table", 400, 64)
    model = _model(
        [
            helper.make_node("ArgMax", ["x"], ["ids"], axis=1, keepdims=0),
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["e", "turned"], ["m"]),
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["c"]),
            helper.make_node(
                "If", ["c"], ["y"],
                then_branch=_branch("t", helper.make_node("Gather", ["table", "ids"], ["t"])),
                else_branch=_branch("n", helper.make_node("Neg", ["m"], ["n"])),
            ),
        ],
        table,
        from_array(np.float32(0), "zero"),
        x=_value("x", 1, 400),
    )  # fmt: skip
    _, after = normalized(tmp_path, model, workshop)
    large = [t for g in graph.graphs(after.graph) for t in g.initializer if len(t.dims) == 2]
    assert len(large) == 1


def test_simplification_that_makes_the_model_larger_is_left_out(
    tmp_path: Path, workshop: Workshop
) -> None:
    shape = from_array(np.array([1, 300, 300]), "shape")
    model = _model(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["c"]),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        shape,
        x=_value("x", 1, 300, 300),
    )
    done, _ = normalized(tmp_path, model, workshop)
    assert "made the model larger" in done.remarks[0]
    assert done.path.stat().st_size < 10_000
    assert "simplification without large constants" in done.steps


def test_constants_of_every_form_become_initializers() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("", TensorProto.INT64, [3, 2], [0, 0, 0, 1, 1, 1]),
        [2, 2],
    )
    forms = {
        "value_float": 2.5, "value_floats": [1.5, 2.5], "value_int": 3, "value_ints": [3, 4],
        "value_string": b"a", "value_strings": [b"a", b"b"], "sparse_value": sparse,
    }  # fmt: skip
    nodes = [helper.make_node("Constant", [], [name], **{name: v}) for name, v in forms.items()]
    model = _model([*nodes, helper.make_node("Identity", ["x"], ["y"])], x=_value("x", 1))
    assert graph.bake_constants(model) == len(forms)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert found["value_float"] == np.float32(2.5) and found["value_floats"].tolist() == [1.5, 2.5]
    assert found["value_ints"].tolist() == [3, 4] and found["value_int"] == 3
    assert found["value_strings"].tolist() == [b"a", b"b"] or found["value_strings"].tolist() == [
        "a",
        "b",
    ]
    assert found["sparse_value"].tolist() == [[1, 2], [0, 3]]


def test_sparse_weight_is_written_out_only_where_that_is_no_larger() -> None:
    def sparse(name: str, entries: int) -> onnx.SparseTensorProto:
        return helper.make_sparse_tensor(
            helper.make_tensor(name, TensorProto.FLOAT, [entries], [1.0] * entries),
            helper.make_tensor("", TensorProto.INT64, [entries], list(range(entries))),
            [100],
        )

    model = _model([helper.make_node("Identity", ["x"], ["y"])], x=_value("x", 1))
    model.graph.sparse_initializer.extend([sparse("few", 5), sparse("many", 60)])
    graph.densify(model)
    assert [s.values.name for s in model.graph.sparse_initializer] == ["few"]
    (dense,) = model.graph.initializer
    assert dense.name == "many" and onnx.numpy_helper.to_array(dense).sum() == 60


@pytest.mark.parametrize("domain", ["ai.onnx.ml", "com.microsoft"])
def test_operators_of_other_domains_pass_through(
    tmp_path: Path, domain: str, workshop: Workshop
) -> None:
    if domain == "ai.onnx.ml":
        other = helper.make_node("Scaler", ["x"], ["s"], domain=domain, offset=[1.0], scale=[2.0])
    else:
        other = helper.make_node("Gelu", ["x"], ["s"], domain=domain)
    model = _model([other, helper.make_node("Softmax", ["s"], ["y"])],
                   x=_value("x", 1, 6, 2), opset=9)  # fmt: skip
    model.opset_import.append(helper.make_opsetid(domain, 1))
    done, after = normalized(tmp_path, model, workshop)
    assert graph.opset(after) == 13
    assert "raising the opset to 13" in done.steps
