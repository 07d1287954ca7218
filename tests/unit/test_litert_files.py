"""LiteRT files as a build sees them: what they hold, and operators that LiteRT lacks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from litert_models import foreign_file, stateful_file
from parts import need_package

from edgekit_contract.errors import Refused
from edgekit_converters.litert import file
from edgekit_converters.litert.file import LiteRtFacts
from edgekit_converters.sources import open_source


@pytest.fixture(autouse=True)
def runtime() -> None:
    need_package("ai_edge_litert", install="pip install 'edgekit[tflite]'")


def test_layers_state_and_sizes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sum.tflite"
    path.write_bytes(stateful_file(8))
    facts = msgspec.convert(file.read(str(path)), LiteRtFacts)
    assert facts.keeps_state and facts.weighted == {"Gemm": 1}
    assert list(facts.layers) == ["product"] and facts.layers["product"].parameters == 64
    assert facts.operators["VAR_HANDLE"] == 2
    assert facts.sizes["float32"] == 4 * (64 + 8)


@pytest.mark.parametrize("name", ["FlexErf", "TFLite_Detection_PostProcess2"])
def test_operator_that_is_not_built_in_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(foreign_file(name))
    with pytest.raises(Refused, match=f"the operator {name}, which litert does not have"):
        open_source(path, scratch=tmp_path)
