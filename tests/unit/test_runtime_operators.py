"""What is known of onnxruntime's operators, against the onnxruntime that is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime.capi.onnxruntime_pybind11_state as registry
import pytest
from onnx import helper, numpy_helper, save_model

from edgekit_contract.compatibility import version_tuple
from edgekit_contract.errors import Refused
from edgekit_converters.recipes import find_recipe
from edgekit_converters.recipes.recipe import Ingredients
from edgekit_converters.runtime_operators import (
    LATER,
    first_version,
    named_in_ort_format,
    newer_than,
)

CONTRIB = "com.microsoft"


def test_table_has_every_operator_of_the_installed_onnxruntime() -> None:
    """One that is missing came with a newer onnxruntime: put it in, and raise `LATER`."""
    held = {d.op_name for d in registry.get_all_opkernel_def() if d.domain == CONTRIB}
    held |= {d.name for d in registry.get_all_operator_schema() if d.domain == CONTRIB}
    assert len(held) > 100
    missing = {name for name in held if first_version(f"{CONTRIB}:{name}") == LATER}
    assert not missing


def test_late_kernels_are_there_by_now() -> None:
    kernels = {d.op_name for d in registry.get_all_opkernel_def() if d.provider.startswith("CPU")}
    assert {"DeformConv", "TensorScatter", "TreeEnsemble"} <= kernels


def test_operator_is_newer_only_than_what_came_before_it() -> None:
    operators = ("Conv", f"{CONTRIB}:Gelu", f"{CONTRIB}:MoE", f"{CONTRIB}:Nonesuch", "me:Mine")
    assert newer_than("1.22.1", operators) == {
        f"{CONTRIB}:MoE": "1.23",
        f"{CONTRIB}:Nonesuch": LATER,
    }
    assert newer_than("1.23.0", operators) == {f"{CONTRIB}:Nonesuch": LATER}


def convolution(path: Path, *, domain: str = "", last: str = "Relu") -> Path:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node(last, ["c"], ["y"], name="last", domain=domain),
        ],
        "convolution",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_operators_of_the_own_format_are_found_by_name(tmp_path: Path) -> None:
    path, out = convolution(tmp_path / "m.onnx"), tmp_path / "m.ort"
    find_recipe("ort-format").make(Ingredients(given=path, normalized=path, ranges={}, out=out))
    assert f"{CONTRIB}:FusedConv" in named_in_ort_format(out.read_bytes())


def test_own_format_with_an_operator_newer_than_it_promises_is_refused(tmp_path: Path) -> None:
    newer = convolution(tmp_path / "m.onnx", domain=CONTRIB, last="ScaledSiLU")
    out = tmp_path / "m.ort"
    with pytest.raises(Refused, match=r"ScaledSiLU, which onnxruntime 1\.20 does not have"):
        find_recipe("ort-format").make(
            Ingredients(given=newer, normalized=newer, ranges={}, out=out)
        )


def test_first_versions_are_versions() -> None:
    assert version_tuple(LATER) > version_tuple("1.32.0")
