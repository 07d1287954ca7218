"""What dynamic quantization makes of small models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_models import write_small

from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.conditioning.moments import Moments
from edgekit_converters.proof import generated
from edgekit_converters.quantization.dynamic import Storage, quantize_dynamic
from edgekit_converters.quantization.merging import merge_products
from edgekit_runtime.session import open_session


def prepared(name: str, directory: Path) -> Path:
    """As normalization leaves it: constants are initializers, nodes have names."""
    path = write_small(name, directory)
    model = onnx.load_model(path)
    graph.bake_constants(model)
    graph.name_nodes(model)
    onnx.save_model(model, path)
    return path


def encoder(directory: Path, *, rows: int = 512, width: int = 128) -> Path:
    """A table, a MatMul and a Gemm that are large enough to be packed."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 8, name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="rows"),
        helper.make_node("MatMul", ["e", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "v"], ["p"], name="second"),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[1], keepdims=0, name="mean"),
        helper.make_node(
            "Gemm", ["m", "u", "b"], ["y"], transB=1, alpha=0.5, beta=2.0, name="last"
        ),
    ]
    inner = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [
            weight("table", rows, width),
            weight("w", width, 200),
            weight("v", 200, width),
            weight("u", 64, width),
            weight("b", 64),
        ],
    )
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    path = directory / "encoder.onnx"
    onnx.save_model(model, path)
    return path


def made(path: Path, *, per_channel: bool = True, reduced: bool = False, **changes) -> Path:
    out = path.with_suffix(".dynamic.onnx")
    values = {"storage": Storage()} | changes
    quantize_dynamic(path, out, per_channel=per_channel, reduce_range=reduced, **values)
    return out


def spread(path: Path, out: Path, *, axis_length: int = 8) -> float:
    """The greatest difference, as a part of the greatest output."""
    before, after = (open_session(RuntimeKind.ONNXRUNTIME, p) for p in (path, out))
    feeds = generated(before.inputs, seed=1, axis_length=axis_length)
    if "ids" in feeds:
        feeds["ids"] = np.arange(feeds["ids"].size).reshape(feeds["ids"].shape)
    want, got = before.run(feeds), after.run(feeds)
    assert list(want) == list(got)
    return max(
        float(np.abs(got[n] - v).max() / np.abs(v).max()) for n, v in want.items() if v.dtype != int
    )


def operators(path: Path) -> set[str]:
    return set(graph.operators(onnx.load_model(path)))


@pytest.mark.parametrize(
    "name", ["several_outputs", "lstm", "regression", "branches", "shared_weights", "dynamic_axes"]
)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
def test_outputs_stay_near(name: str, per_channel: bool, reduced: bool, tmp_path: Path) -> None:
    path = prepared(name, tmp_path)
    out = made(path, per_channel=per_channel, reduced=reduced)
    assert operators(out) & {"MatMulInteger", "com.microsoft:DynamicQuantizeLSTM"}
    assert spread(path, out) < 0.06


def test_attributes_of_gemm_are_kept(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    assert spread(path, made(path)) < 0.02


def test_table_and_weights_take_a_quarter(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    out = made(path)
    assert out.stat().st_size < 0.28 * path.stat().st_size
    assert not any(
        t.data_type == TensorProto.FLOAT and numpy_helper.to_array(t).size > 600
        for t in onnx.load_model(out).graph.initializer
    )


@pytest.mark.parametrize(
    ("storage", "part"),
    [
        (Storage(bits=6, block=100, table_bits=6), 0.245),
        (Storage(bits=5, block=64, table_bits=4), 0.21),
        (Storage(bits=4, block=32, table_bits=4), 0.20),
    ],
)
def test_packed_weights_are_smaller_and_compute_in_8_bits(
    storage: Storage, part: float, tmp_path: Path
) -> None:
    path = encoder(tmp_path)
    out = made(path, storage=storage)
    assert out.stat().st_size < part * path.stat().st_size
    assert "MatMulInteger" in operators(out)
    assert spread(path, out) < {6: 0.08, 5: 0.15, 4: 0.25}[storage.bits]


def test_spared_node_stays_as_it_was(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    out = made(path, spared=frozenset({"first", "rows"}))
    left = {n.name: n.op_type for n in onnx.load_model(out).graph.node}
    assert left["first"] == "MatMul" and left["rows"] == "Gather" and "second" not in left


def test_spared_node_of_a_packed_model_keeps_8_bits(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    packed = Storage(bits=4, block=32, table_bits=4)
    every = made(path, storage=packed)
    narrow = every.stat().st_size
    spared = made(path, storage=packed, spared=frozenset({"first"}))
    assert narrow < spared.stat().st_size < narrow + 200 * 128
    assert "MatMul" not in operators(spared)


def product(directory: Path, names: tuple[str, ...], *shape: int) -> Path:
    """Several MatMul that read one input."""
    random = np.random.default_rng(5)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), f"w{n}")
        for n in names
    ]
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{n}"], [n], name=f"to {n}") for n in names],
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", shape[0]])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", shape[1]]) for n in names],
        weights,
    )
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    path = directory / "heads.onnx"
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("storage", [Storage(), Storage(bits=4, block=32)])
def test_rounding_by_moments_changes_outputs_less(storage: Storage, tmp_path: Path) -> None:
    path, random = product(tmp_path, ("y",), 128, 96), np.random.default_rng(3)
    rows = random.standard_normal((400, 128)) @ random.standard_normal((128, 128))
    seen = Moments(gram=(rows.T @ rows / len(rows))[None], mean=rows.mean(0)[None], rows=len(rows))
    want = open_session(RuntimeKind.ONNXRUNTIME, path).run({"x": rows.astype(np.float32)})["y"]

    def error(moments: dict[str, Moments]) -> float:
        session = open_session(
            RuntimeKind.ONNXRUNTIME, made(path, storage=storage, moments=moments)
        )
        return float(np.mean((session.run({"x": rows.astype(np.float32)})["y"] - want) ** 2))

    assert error({"to y": seen}) < 0.95 * error({})


def test_one_quantization_serves_all_that_read_a_tensor(tmp_path: Path) -> None:
    path = product(tmp_path, ("q", "k", "v"), 8, 8)
    counted = graph.operators(onnx.load_model(made(path, per_channel=False)))
    assert (counted["DynamicQuantizeLinear"], counted["MatMulInteger"]) == (1, 3)


def test_products_that_read_one_tensor_are_one_and_compute_the_same(tmp_path: Path) -> None:
    path = product(tmp_path, ("q", "k", "v"), 8, 8)
    merged, apart = tmp_path / "merged.onnx", tmp_path / "apart.onnx"
    for out, spared in ((merged, frozenset()), (apart, frozenset({"to q", "to k"}))):
        quantize_dynamic(
            path, out, per_channel=True, reduce_range=False, storage=Storage(), spared=spared
        )
    counted = graph.operators(onnx.load_model(merged))
    assert (counted["MatMulInteger"], counted["Split"]) == (1, 1)
    assert graph.operators(onnx.load_model(apart))["MatMul"] == 2
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)}
    got, want = (open_session(RuntimeKind.ONNXRUNTIME, p).run(feeds) for p in (merged, apart))
    assert list(got) == ["q", "k", "v"]
    assert np.array_equal(got["v"], want["v"])  # a column's numbers are its own


@pytest.mark.parametrize(
    ("shape", "heads"), [((0, 0, 2, 4), 2), ((0, -1, 2, 4), 2), ((1, -1, 1, 8), 1)]
)
def test_projections_by_heads_are_laid_out_in_one(
    shape: tuple[int, ...], heads: int, tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1, N, 6] x) => (float[1, {heads}, N, M] scores, float[1, {heads}, N, D] v)
        <int64[4] s = {{{", ".join(map(str, shape))}}}>
        {{
            pq = MatMul(x, wq) aq = Add(pq, bq) rq = Reshape(aq, s)
            q = Transpose <perm = [0, 2, 1, 3]> (rq)
            pk = MatMul(x, wk) ak = Add(pk, bk) rk = Reshape(ak, s)
            k = Transpose <perm = [0, 2, 3, 1]> (rk)
            pv = MatMul(x, wv) av = Add(pv, bv) rv = Reshape(av, s)
            v = Transpose <perm = [0, 2, 1, 3]> (rv)
            scores = MatMul(q, k)
        }}
        """
    )
    random = np.random.default_rng(3)
    for name in ("wq", "wk", "wv", "bq", "bk", "bv"):
        value = random.standard_normal((6, 8) if name[0] == "w" else (8,)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    graph.name_nodes(model)
    onnx.save_model(model, tmp_path / "before.onnx")
    assert merge_products(model, ()) == 2
    onnx.checker.check_model(model)
    onnx.save_model(model, tmp_path / "after.onnx")
    counted = graph.operators(model)
    # all in one, and what turns the keys
    assert (counted["Reshape"], counted["Split"], counted["Transpose"]) == (1, 1, 2)
    feeds = {"x": random.standard_normal((1, 5, 6)).astype(np.float32)}
    before, after = (
        open_session(RuntimeKind.ONNXRUNTIME, tmp_path / f"{n}.onnx").run(feeds)
        for n in ("before", "after")
    )
    assert all(np.allclose(after[name], before[name], atol=1e-5) for name in before)


def test_layouts_that_differ_are_made_one_by_one(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1, N, 6] x) => (float[1, 2, N, 4] q, float[1, 4, N, 2] k)
        <int64[4] s = {0, 0, 2, 4}, int64[4] t = {0, 0, 4, 2}>
        {
            pq = MatMul(x, wq) rq = Reshape(pq, s) q = Transpose <perm = [0, 2, 1, 3]> (rq)
            pk = MatMul(x, wk) rk = Reshape(pk, t) k = Transpose <perm = [0, 2, 1, 3]> (rk)
        }
        """
    )
    for name in ("wq", "wk"):
        value = np.eye(6, 8, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    graph.name_nodes(model)
    assert merge_products(model, ()) == 1
    onnx.checker.check_model(model)
    assert graph.operators(model)["Reshape"] == 2


def test_biases_go_along_and_products_with_other_readers_stay(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] a, float[N, 4] b, float[N, 4] c, float[N, 4] pc)
        {
            pa = MatMul(x, wa) a = Add(pa, ba) pb = MatMul(x, wb) b = Add(bb, pb)
            pc = MatMul(x, wc) c = Add(pc, bc)
        }
        """
    )
    random = np.random.default_rng(2)
    for name in ("wa", "wb", "wc", "ba", "bb", "bc"):
        shape = (4, 4) if name[0] == "w" else (4,)
        value = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    graph.name_nodes(model)
    feeds = {"x": random.standard_normal((3, 4)).astype(np.float32)}
    onnx.save_model(model, tmp_path / "before.onnx")
    assert merge_products(model, ()) == 1
    onnx.save_model(model, tmp_path / "after.onnx")
    counted = graph.operators(model)
    assert (counted["MatMul"], counted["Add"], counted["Split"]) == (2, 2, 1)
    before, after = (
        open_session(RuntimeKind.ONNXRUNTIME, tmp_path / f"{n}.onnx").run(feeds)
        for n in ("before", "after")
    )
    assert all(np.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_weights_that_are_not_numbers_stay(tmp_path: Path) -> None:
    path = encoder(tmp_path)
    model: ModelProto = onnx.load_model(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            broken = numpy_helper.to_array(tensor).copy()
            broken[0, 0] = np.inf
            tensor.CopyFrom(numpy_helper.from_array(broken, "w"))
    onnx.save_model(model, path)
    names = {n.name for n in onnx.load_model(made(path)).graph.node}
    assert "first" in names and "second" not in names


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no node could be quantized"):
        made(prepared("classical", tmp_path))


def test_small_weights_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="use int8-dynamic"):
        made(prepared("regression", tmp_path), storage=Storage(bits=4, block=32))


def test_convolution_beside_products_computes_in_float_with_stored_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="last"),
    ]
    inner = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 60])],
        [
            numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 9, name)
            for name, shape in {"w": (64, 16, 3, 3), "v": (64, 60)}.items()
        ],
    )
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    path = tmp_path / "mixed.onnx"
    onnx.save_model(model, path)
    out = made(path)
    assert {"Conv", "MatMulInteger"} <= operators(out)
    assert out.stat().st_size < 0.32 * path.stat().st_size
    assert spread(path, out) < 0.03
    kept = onnx.load_model(made(path, spared=frozenset({"conv"})))
    assert next(n for n in kept.graph.node if n.name == "conv").input[1] == "w"
    with pytest.raises(Refused, match="no node"):
        made(path, spared=frozenset({"last"}))


def test_stored_weights_are_rounded_once_and_small_ones_not_at_all(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "small"], ["a"], name="to a"),
        helper.make_node("Conv", ["a", "large"], ["c"], name="to c"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="last"),
    ]
    shapes = {"small": (8, 3, 1, 1), "large": (24, 8, 3, 3), "v": (24, 4)}
    weights = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    inner = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save_model(helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)]), path)

    def seen(width: int) -> Moments:
        rows = random.standard_normal((300, width)) @ random.standard_normal((width, width))
        return Moments(gram=(rows.T @ rows / 300)[None], mean=rows.mean(0)[None], rows=300)

    moments = {"to a": seen(3), "to c": seen(72)}
    out = onnx.load_model(made(path, per_channel=False, reduced=True, moments=moments))
    held = {t.name: numpy_helper.to_array(t) for t in out.graph.initializer}
    assert np.array_equal(held["small"], weights["small"].astype(np.float32))
    large = weights["large"].reshape(24, 72)
    steps = np.abs(large).max(axis=1, keepdims=True) / 127
    codes = held["large_int8"].reshape(24, 72)
    assert (np.abs(codes).max(axis=1) == 127).all()

    def losses(codes: np.ndarray) -> np.ndarray:
        change = codes * steps - large
        return np.einsum("od,de,oe->o", change, moments["to c"].gram[0], change)

    assert losses(codes).sum() < 0.95 * losses(np.rint(large / steps)).sum()


def readers(directory: Path, *other: onnx.NodeProto) -> Path:
    """Two Gather of one table, a product, and maybe others that read the table."""
    random = np.random.default_rng(0)
    weights = {"table": random.standard_normal((400, 64)), "w": random.standard_normal((64, 8))}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"], name="rows"),
        helper.make_node("Gather", ["table", "ids"], ["b"], name="others"),
        helper.make_node("Add", ["a", "b"], ["s"], name="sum"),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="last"),
        *other,
    ]
    inner = helper.make_graph(
        nodes,
        "readers",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("y", *(node.output[0] for node in other))
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    path = directory / "readers.onnx"
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize(("storage", "part"), [(8, 0.30), (4, 0.22)])
def test_a_table_that_several_read_is_stored_once(
    storage: int, part: float, tmp_path: Path
) -> None:
    path = readers(tmp_path)
    narrow = Storage(table_bits=storage)
    out = made(path, storage=narrow)
    assert out.stat().st_size < part * path.stat().st_size
    assert spread(path, out) < 0.15


@pytest.mark.parametrize("low", [-1e4, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("table_bits", [4, 6])
def test_a_mask_keeps_its_zeros_whatever_the_bits(
    low: float, table_bits: int, tmp_path: Path
) -> None:
    mask = np.where(np.random.default_rng(0).random((64, 96)) < 0.5, 0, low).astype(np.float32)
    values = {
        "mask": mask,
        "table": np.random.default_rng(1).standard_normal((64, 96)).astype(np.float32),
        "w": np.random.default_rng(2).standard_normal((96, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["mask", "ids"], ["masked"], name="masks"),
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="last"),
    ]
    inner = helper.make_graph(
        nodes,
        "masks",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("masked", "y")],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    path = tmp_path / "masks.onnx"
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.save_model(model, path)
    out = made(path, storage=Storage(table_bits=table_bits))
    ids = np.arange(64, dtype=np.int64)
    got = open_session(RuntimeKind.ONNXRUNTIME, out).run({"ids": ids})["masked"]
    assert not got[mask == 0].any() and np.allclose(got, mask, rtol=0.01)


@pytest.mark.parametrize("keeper", ["operator", "spared node"])
def test_a_table_that_another_keeps_is_not_stored_beside_it(keeper: str, tmp_path: Path) -> None:
    other = [helper.make_node("ReduceMax", ["table"], ["z"], name="keeper")]
    is_spared = keeper == "spared node"
    path = readers(tmp_path, *([] if is_spared else other))
    out = made(path, spared=frozenset({"others"} if is_spared else ()))
    left = graph.operators(onnx.load_model(out))
    assert (left["Gather"], left["MatMulInteger"]) == (2, 1)
    assert out.stat().st_size < path.stat().st_size
