"""What reading values inside a model leaves behind: nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layer_models import model_of, node
from sessions import opened_sessions, still_open

from edgekit_converters.conditioning.probe import readings
from edgekit_runtime.session import ModelUnloadable

FEEDS = [{"x": np.ones((2, 3), np.float32)}] * 3


def test_a_reading_that_is_left_early_closes_its_session(tmp_path: Path) -> None:
    model = model_of([node("Relu", "x", "r"), node("Neg", "r", "y")], {}, rank=2)
    with (
        opened_sessions() as sessions,
        readings(model, ["r"], FEEDS, threads=1, scratch=tmp_path) as seen,
    ):
        assert next(seen)["r"].tolist() == [[1] * 3] * 2
    # the iterator is still there
    assert sessions and not still_open(sessions)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_load_leaves_no_file(tmp_path: Path) -> None:
    model = model_of([node("NoSuchOperator", "x", "y")], {}, rank=2)
    with (
        pytest.raises(ModelUnloadable),
        readings(model, ["x"], FEEDS, threads=1, scratch=tmp_path) as seen,
    ):
        list(seen)
    assert not list(tmp_path.iterdir())
