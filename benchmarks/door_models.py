"""Models of other frameworks, trained here in seconds on real data: the digits of the example
(MNIST), and tables that scikit-learn ships (digits, breast cancer).

Invariant: training sees no sample that validation has. A model is the same each time it is made:
`edgekit build door_models:NAME` names these functions, too.
"""

from __future__ import annotations

import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_converters import environments

__all__ = ["SEEN", "digits", "digits_data", "digits_histograms", "digits_network",
           "digits_pipeline", "keras_digits", "table_data", "tables", "trained_digits"]  # fmt: skip

DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"
SEEN: Final = 600
"""Digits of the example's validation data that are trained on; the others validate."""
_KERAS: Final = f"""
import sys, keras, numpy as np
keras.utils.set_random_seed(1)
data, out = np.load(sys.argv[1]), sys.argv[2]
image = data["image"].transpose(0, 2, 3, 1)[:{SEEN}].astype("float32")
inputs = keras.Input((28, 28, 1), name="image")
x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
x = keras.layers.BatchNormalization()(x)
x = keras.layers.Flatten()(x)
model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="scores")(x))
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(image, data["labels"][:{SEEN}], epochs=12, verbose=0)
model.save(f"{{out}}/digits.keras")
model.save(f"{{out}}/digits.h5")
model.export(f"{{out}}/digits", verbose=False)
"""


def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS / "validation.npz") as data:
        return data["image"], data["labels"]


def digits_data(path: Path) -> str:
    """DATA of the digits that no training has seen, for an `nn.Sequential`."""
    images, labels = digits()
    np.savez(path, input=images[SEEN:], labels=labels[SEEN:])
    return str(path)


def keras_digits(directory: Path) -> Path:
    """A network trained by Keras as `digits.keras`, `digits.h5`, the SavedModel `digits`, and the
    digits that it has not seen in `rows.npz`. Its environment is there."""
    python = environments.find(environments.TENSORFLOW)
    assert python is not None, "edgekit environments setup tensorflow"
    command = [python, "-I", "-c", _KERAS, DIGITS / "validation.npz", directory]
    subprocess.run(command, check=True, capture_output=True)
    images, labels = digits()
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1)[SEEN:])
    np.savez(directory / "rows.npz", image=rows, labels=labels[SEEN:])
    return directory


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


@lru_cache
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
    """scikit-learn: scaled, then logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, classes, _, _ = tables("digits")
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features, classes)


def digits_histograms() -> Any:
    """scikit-learn: gradient boosting by histograms."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    features, classes, _, _ = tables("digits")
    return HistGradientBoostingClassifier(max_iter=12, random_state=0).fit(features, classes)
