"""Callables that give no model that a build can take, one way each."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from door_models import digits_network, tables


def unseeded() -> Any:
    import torch

    torch.seed()
    return digits_network(), torch.zeros(1, 1, 28, 28)


def without_inputs() -> Any:
    return digits_network()


def a_number() -> int:
    return 7


def raising() -> Any:
    raise RuntimeError("weights.npz is not there")


def crashing() -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging() -> Any:
    while True:
        pass


def eating_memory() -> Any:
    return bytearray(40 << 30)


def filling_the_disk() -> Any:
    for number in range(100):
        Path(tempfile.gettempdir(), f"{number}").write_bytes(bytes(128 << 20))


def unfitted() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression()


def without_converter() -> Any:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.pipeline import make_pipeline

    class Swapper(TransformerMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, x: Any, y: Any = None) -> Any:
            self.n_features_in_ = x.shape[1]
            return self

        def transform(self, x: Any) -> Any:
            return x[:, ::-1]

    from sklearn.naive_bayes import GaussianNB

    features, classes, _, _ = tables("breast_cancer")
    return make_pipeline(Swapper(), GaussianNB()).fit(features, classes)


def with_an_operator_of_its_own() -> Any:
    import torch

    @torch.library.custom_op("acme::frobnicate", mutates_args=(), schema="(Tensor x) -> Tensor")
    def frobnicate(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @frobnicate.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    class Frobnicator(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return frobnicate(image)

    return Frobnicator(), torch.zeros(1, 4)


def branching_on_data() -> Any:
    import torch

    class Brancher(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * 2 if image.sum() > 0 else image

    return Brancher(), torch.zeros(1, 4)
