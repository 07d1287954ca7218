"""LiteRT sessions, whose interpreter keeps the shapes that it was last told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parts import need_package
from real_models import package_directory
from tflite_files import add_file

from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import InferenceFailed, ModelUnloadable, open_session


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


def test_model_whose_lengths_its_inputs_tell_loads_and_takes_any_that_do(tmp_path: Path) -> None:
    """openWakeWord's spectrogram: the file says one sample, and its first window takes 512."""
    for module in ("ai_edge_litert", "pyopen_wakeword"):
        need_package(module, install="scripts/models")
    models = package_directory("pyopen_wakeword") / "models"
    session = open_session(RuntimeKind.LITERT, models / "melspectrogram.tflite")
    (given,), (made,) = session.inputs, session.outputs
    assert given.shape == ("axis0", "axis1") and made.shape == ("axis0", 1, "axis2", 32)
    assert "lengths" in session.execution.reason
    sound = np.random.default_rng(0).standard_normal((1, 16_000)).astype(np.float32)
    whole = session.run({given.name: sound})[made.name]
    assert whole.shape == (1, 1, 97, 32) and "XNNPACK" in session.execution.used
    with pytest.raises(InferenceFailed):
        session.run({given.name: sound[:, :100]})
    part = session.run({given.name: sound[:, :1280]})[made.name]
    assert part.shape == (1, 1, 5, 32)
    np.testing.assert_allclose(
        part[..., 0, :].argsort()[..., -3:], whole[..., 0, :].argsort()[..., -3:]
    )


def test_model_with_fixed_lengths_that_does_not_load_is_refused_at_once(tmp_path: Path) -> None:
    need_package("ai_edge_litert", install="ai-edge-litert")
    path = tmp_path / "broken.tflite"
    path.write_bytes(add_file(3)[:64])
    with pytest.raises(ModelUnloadable):
        open_session(RuntimeKind.LITERT, path)
