"""Models of other frameworks, trained here in seconds on real data: the digits of the example
(MNIST), and tables that scikit-learn ships (digits, breast cancer).

Invariant: training sees no sample that validation has. This module's functions are also what
`edgekit build door_models:NAME` calls.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from build_requests import DIGITS

SEEN = 600
"""Digits of the example's validation data that are trained on; the others validate."""


def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS / "validation.npz") as data:
        return data["image"], data["labels"]


def digits_data(path: Path) -> str:
    """DATA of the digits that no training has seen."""
    images, labels = digits()
    np.savez(path, image=images[SEEN:], labels=labels[SEEN:])
    return str(path)


def digits_network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16 * 7 * 7, 10),
    )


def trained_digits() -> Any:
    """A convolutional network that reads nine of ten digits or more."""
    import torch

    torch.manual_seed(3)
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(array[:SEEN]) for array in digits())
    network = digits_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(SEEN).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def tables(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Seen features and classes, and those held out."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    features, classes = getattr(datasets, f"load_{name}")(return_X_y=True)
    parts = train_test_split(
        features.astype(np.float32), classes, test_size=0.4, random_state=0, stratify=classes
    )
    return parts[0], parts[2], parts[1], parts[3]


def table_data(path: Path, name: str) -> str:
    """DATA of the rows that no training has seen."""
    _, _, features, classes = tables(name)
    np.savez(path, features=features, labels=classes)
    return str(path)


def digits_pipeline() -> Any:
    """scikit-learn: scaled, then a support vector machine with probabilities."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, classes, _, _ = tables("digits")
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features, classes)


# What a callable gives that no build can take


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

    from sklearn.linear_model import LogisticRegression

    features, classes, _, _ = tables("breast_cancer")
    return make_pipeline(Swapper(), LogisticRegression(max_iter=10_000)).fit(features, classes)


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
