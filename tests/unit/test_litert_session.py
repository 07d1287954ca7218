"""LiteRT sessions, whose interpreter keeps the shapes that it was last told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parts import need_package
from tflite_files import add_file

from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import InferenceFailed, open_session


def test_inputs_that_do_not_go_together_fail_one_request_and_no_other(tmp_path: Path) -> None:
    need_package("ai_edge_litert", install="ai-edge-litert")
    path = tmp_path / "add.tflite"
    path.write_bytes(add_file(3))
    session = open_session(RuntimeKind.LITERT, path)

    def ones(rows: int) -> np.ndarray:
        return np.ones((rows, 3), np.float32)

    for rows in (1, 2):
        assert session.run({"a": ones(rows), "b": ones(rows)})["y"].shape == (rows, 3)
        for _ in range(2):
            with pytest.raises(InferenceFailed):
                session.run({"a": ones(2), "b": ones(3)})
        answer = session.run({"a": ones(rows), "b": ones(rows)})
        np.testing.assert_array_equal(answer["y"], np.full((rows, 3), 2, np.float32))
