"""Data that misbehave while they are read, and models that give no numbers: one sentence each."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from build_requests import request
from onnx import TensorProto, helper, numpy_helper
from refusals import MODEL, npz, refusal

from edgekit.build import build
from edgekit_contract.errors import Refused


def _feeder(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> str:
    """A callable of the user's: `body` is a generator's, which knows `calls`, `image` and `np`."""
    (directory / "feeder_of_user.py").write_text(
        "import numpy as np\n"
        "calls = []\n"
        "image = np.random.default_rng(0).random((1, 28, 28)).astype(np.float32)\n"
        "def samples():\n"
        "    calls.append(1)\n" + textwrap.indent(textwrap.dedent(body), "    ")
    )
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.delitem(sys.modules, "feeder_of_user", raising=False)
    return "feeder_of_user:samples"


FEEDERS: dict[str, tuple[str, str]] = {
    "throws late": (
        "for _ in range(20): yield {'image': image}\nraise KeyError('camera')",
        "KeyError at sample 20",
    ),
    "gives NaN late": (
        "for i in range(20): yield {'image': image * (np.nan if i == 12 else 1)}",
        "sample 12 has NaN",
    ),
    "changes its type": (
        "for i in range(20): yield {'image': image if i < 7 else np.array(['x'])}",
        "sample 7 is <U1",
    ),
    "changes its rank": (
        "for i in range(20): yield {'image': image if i < 7 else image[0]}",
        "sample 7 has shape [28, 28]",
    ),
    "forgets the input": (
        "for i in range(20): yield {'image': image} if i < 7 else {'picture': image}",
        "sample 7 has no array for the input 'image'",
    ),
    "gives no mapping": ("yield image", "gave a ndarray at sample 0"),
    "ends at once": ("return\nyield", "holds no sample"),
    "has nothing left the second time": (
        "for _ in range(20 if len(calls) == 1 else 0): yield {'image': image}",
        "no sample",
    ),
}


@pytest.mark.parametrize("case", FEEDERS)
def test_callable_that_misbehaves_is_refused_with_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    body, said = FEEDERS[case]
    data = _feeder(tmp_path, monkeypatch, body)
    text = refusal(tmp_path, calibration=data, recipes=("int8-static/per-tensor/*/minmax",))
    assert said in text and data in text


def test_callable_that_gives_fewer_samples_every_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What uses up its data as it gives them: each pass sees less."""
    data = _feeder(
        tmp_path, monkeypatch, "for _ in range(30 // len(calls)): yield {'image': image}"
    )
    with pytest.raises(Refused, match="other rows in another pass"):
        build(
            request(
                MODEL,
                tmp_path / "out",
                validation=data,
                recipes=("float32-optimized",),
                search_time_s=0.5,
            )
        )


def _spoiled(directory: Path, *, wholly: bool) -> Path:
    """Square roots of what is negative, too: of everything, or of part."""
    value = helper.make_tensor_value_info
    shift = numpy_helper.from_array(np.full(4, -1e6 if wholly else 0, np.float32), "shift")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "shift"], ["s"]), helper.make_node("Sqrt", ["s"], ["root"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("root", TensorProto.FLOAT, ["n", 4])],
        [shift],
    )
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), directory / "m.onnx")
    return directory / "m.onnx"


@pytest.mark.parametrize("has_data", [True, False])
def test_model_that_gives_nothing_but_nan_is_refused(tmp_path: Path, has_data: bool) -> None:
    data = npz(tmp_path / "d.npz", x=np.ones((6, 4), np.float32))
    changes = {"validation": data} if has_data else {}
    text = refusal(tmp_path, model=_spoiled(tmp_path, wholly=True), **changes)
    assert "nothing but NaN" in text and "'root'" in text
    assert ("--validation" in text) is not has_data


def test_model_that_gives_nan_here_and_there_is_built_and_it_is_said(tmp_path: Path) -> None:
    rows = np.abs(np.random.default_rng(0).standard_normal((12, 4))).astype(np.float32)
    rows[2, 1] = -1
    done = build(
        request(
            _spoiled(tmp_path, wholly=False),
            tmp_path / "out",
            validation=npz(tmp_path / "d.npz", x=rows),
            recipes=("float32-optimized",),
            search_time_s=0.5,
        )
    )
    (built,) = done.built
    said = [remark for remark in built.report.remarks if "NaN" in remark]
    assert len(said) == 1 and "sample 2" in said[0] and "'root'" in said[0]
