"""Networks as they were published, with made-up weights: latency asks for their shapes only.

MobileNet v1 (Howard et al., 2017, table 1), ResNet-50 (He et al., 2015, table 1), Inception v3
(Szegedy et al., 2015, as torchvision lays it out), YOLO11 (its yolo11.yaml, sizes n and s) and
YOLOX (Ge et al., 2021, and its yolo_pafpn.py and yolo_head.py), all with batch normalization folded
into the convolutions, as runtimes do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NETWORKS"]


class Net:
    """A graph being built; a value is its name and (channels, height, width)."""

    def __init__(self, side: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, int, int]] = {"image": (3, side, side)}
        self._random = np.random.default_rng(0)

    def channels(self, x: str) -> int:
        return self.shapes[x][0]

    def add(
        self, op: str, inputs: Sequence[str], shape: tuple[int, int, int], **fields: Any
    ) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **fields))
        self.shapes[name] = shape
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self,
        x: str,
        out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str | None = "Relu",
        pad: int | tuple[int, int] | None = None,
    ) -> str:
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        if pad is None:
            pad = (high // 2, wide // 2)
        top, left = (pad, pad) if isinstance(pad, int) else pad
        channels, height, width = self.shapes[x]
        scale = (2.0 / (channels // groups * high * wide)) ** 0.5
        kernels = self._random.normal(0, scale, (out, channels // groups, high, wide))
        inputs = [x, self.constant(kernels.astype(np.float32))]
        inputs.append(self.constant(np.zeros(out, np.float32)))
        shape = (
            out,
            (height + 2 * top - high) // stride + 1,
            (width + 2 * left - wide) // stride + 1,
        )
        y = self.add(
            "Conv", inputs, shape, group=groups, strides=[stride, stride],
            pads=[top, left, top, left], kernel_shape=[high, wide],
        )  # fmt: skip
        if act == "Silu":
            return self.add("Mul", [y, self.add("Sigmoid", [y], shape)], shape)
        return self.add(act, [y], shape) if act else y

    def pool(self, x: str, kernel: int, stride: int, *, pad: int = 0, mean: bool = False) -> str:
        channels, height, width = self.shapes[x]
        shape = (
            channels,
            (height + 2 * pad - kernel) // stride + 1,
            (width + 2 * pad - kernel) // stride + 1,
        )
        return self.add(
            "AveragePool" if mean else "MaxPool", [x], shape, kernel_shape=[kernel, kernel],
            strides=[stride, stride], pads=[pad] * 4,
        )  # fmt: skip

    def concat(self, *parts: str) -> str:
        _, height, width = self.shapes[parts[0]]
        return self.add("Concat", parts, (sum(map(self.channels, parts)), height, width), axis=1)

    def halves(self, x: str) -> tuple[str, str]:
        channels, height, width = self.shapes[x]
        first, second = f"v{len(self.nodes)}a", f"v{len(self.nodes)}b"
        self.nodes.append(helper.make_node("Split", [x], [first, second], axis=1))
        self.shapes |= dict.fromkeys((first, second), (channels // 2, height, width))
        return first, second

    def sum(self, a: str, b: str, *, act: str | None = None) -> str:
        y = self.add("Add", [a, b], self.shapes[a])
        return self.add(act, [y], self.shapes[a]) if act else y

    def classify(self, x: str) -> str:
        channels = self.channels(x)
        flat = self.add("Flatten", [self.add("GlobalAveragePool", [x], (channels, 1, 1))],
                        (channels, 1, 1))  # fmt: skip
        weights = self._random.normal(0, channels**-0.5, (channels, 1000)).astype(np.float32)
        bias = self.constant(np.zeros(1000, np.float32))
        return self.add("Gemm", [flat, self.constant(weights), bias], (1000, 1, 1))

    def save(self, outputs: Sequence[str], path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *self.shapes["image"]])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 13)]
        onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def mobilenet_v1(path: Path) -> Path:
    net = Net(224)
    x = net.conv("image", 32, 3, 2)
    for out, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
                        *[(512, 1)] * 5, (1024, 2), (1024, 1)):  # fmt: skip
        x = net.conv(x, net.channels(x), 3, stride, groups=net.channels(x))
        x = net.conv(x, out)
    return net.save([net.classify(x)], path)


def resnet50(path: Path) -> Path:
    net = Net(224)
    x = net.pool(net.conv("image", 64, 7, 2), 3, 2, pad=1)
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = first if block == 0 else 1
            y = net.conv(net.conv(net.conv(x, width), width, 3, stride), 4 * width, act=None)
            short = net.conv(x, 4 * width, 1, stride, act=None) if block == 0 else x
            x = net.sum(y, short, act="Relu")
    return net.save([net.classify(x)], path)


def inception_v3(path: Path) -> Path:
    net = Net(299)
    conv = net.conv
    x = conv(conv(conv("image", 32, 3, 2, pad=0), 32, 3, pad=0), 64, 3)
    x = conv(conv(net.pool(x, 3, 2), 80, 1), 192, 3, pad=0)
    x = net.pool(x, 3, 2)
    for pooled in (32, 64, 64):
        x = net.concat(
            conv(x, 64), conv(conv(x, 48), 64, 5), conv(conv(conv(x, 64), 96, 3), 96, 3),
            conv(net.pool(x, 3, 1, pad=1, mean=True), pooled),
        )  # fmt: skip
    x = net.concat(conv(x, 384, 3, 2, pad=0),
                   conv(conv(conv(x, 64), 96, 3), 96, 3, 2, pad=0), net.pool(x, 3, 2))  # fmt: skip
    row, column = (1, 7), (7, 1)
    for width in (128, 160, 160, 192):
        double = conv(conv(conv(conv(conv(x, width), width, column), width, row), width, column),
                      192, row)  # fmt: skip
        x = net.concat(
            conv(x, 192), conv(conv(conv(x, width), width, row), 192, column), double,
            conv(net.pool(x, 3, 1, pad=1, mean=True), 192),
        )  # fmt: skip
    x = net.concat(
        conv(conv(x, 192), 320, 3, 2, pad=0),
        conv(conv(conv(conv(x, 192), 192, row), 192, column), 192, 3, 2, pad=0),
        net.pool(x, 3, 2),
    )
    for _ in range(2):
        single, double = conv(x, 384), conv(conv(x, 448), 384, 3)
        x = net.concat(
            conv(x, 320), conv(single, 384, (1, 3)), conv(single, 384, (3, 1)),
            conv(double, 384, (1, 3)), conv(double, 384, (3, 1)),
            conv(net.pool(x, 3, 1, pad=1, mean=True), 192),
        )  # fmt: skip
    return net.save([net.classify(x)], path)


class Yolo(Net):
    """What YOLO11 and YOLOX have in common."""

    def silu(self, x: str, out: int, kernel: int = 1, stride: int = 1, **fields: Any) -> str:
        return self.conv(x, out, kernel, stride, act="Silu", **fields)

    def up(self, x: str) -> str:
        channels, height, side = self.shapes[x]
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        shape = (channels, 2 * height, 2 * side)
        return self.add("Resize", [x, "", scales], shape, mode="nearest")


class Yolo11(Yolo):
    """The blocks of YOLO11."""

    def bottleneck(self, x: str, share: float = 0.5) -> str:
        out = self.channels(x)
        return self.sum(x, self.silu(self.silu(x, int(out * share), 3), out, 3))

    def c3k(self, x: str) -> str:
        half = self.channels(x) // 2
        y = self.bottleneck(self.bottleneck(self.silu(x, half), 1.0), 1.0)
        return self.silu(self.concat(y, self.silu(x, half)), self.channels(x))

    def c3k2(self, x: str, out: int, *, deep: bool = False, share: float = 0.5) -> str:
        first, second = self.halves(self.silu(x, 2 * int(out * share)))
        inner = self.c3k(second) if deep else self.bottleneck(second)
        return self.silu(self.concat(first, second, inner), out)

    def sppf(self, x: str) -> str:
        out = self.channels(x)
        pools = [self.silu(x, out // 2)]
        for _ in range(3):
            pools.append(self.pool(pools[-1], 5, 1, pad=2))
        return self.silu(self.concat(*pools), out)

    def psa(self, x: str) -> str:
        out = self.channels(x)
        kept, y = self.halves(self.silu(x, out))
        y = self.sum(y, self.attention(y))
        half = self.channels(y)
        y = self.sum(y, self.conv(self.silu(y, 2 * half), half, act=None))
        return self.silu(self.concat(kept, y), out)

    def attention(self, x: str) -> str:
        channels, height, side = self.shapes[x]
        heads, count = channels // 64, height * side
        qkv = self.conv(x, 2 * channels, act=None)
        shape = self.constant(np.array([1, heads, 128, count], np.int64))
        shaped = self.add("Reshape", [qkv, shape], (heads, 128, count))
        query, key, value = (f"{shaped}{part}" for part in "qkv")
        parts = self.constant(np.array([32, 32, 64], np.int64))
        self.nodes.append(helper.make_node("Split", [shaped, parts], [query, key, value], axis=2))
        turned = self.add("Transpose", [query], (heads, count, 32), perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [turned, key], (heads, count, count))
        weights = self.add("Softmax", [scores], (heads, count, count), axis=-1)
        weights = self.add("Transpose", [weights], (heads, count, count), perm=[0, 1, 3, 2])
        mixed = self.add("MatMul", [value, weights], (heads, 64, count))
        shape = self.constant(np.array([1, channels, height, side], np.int64))
        mixed = self.add("Reshape", [mixed, shape], self.shapes[x])
        place = self.conv(mixed, channels, 3, groups=channels, act=None)
        return self.conv(self.sum(mixed, place), channels, act=None)

    def detect(self, level: str, box: int, kind: int) -> list[str]:
        boxes = self.conv(self.silu(self.silu(level, box, 3), box, 3), 64, act=None)
        channels = self.channels(level)
        y = self.silu(self.silu(level, channels, 3, groups=channels), kind)
        y = self.silu(self.silu(y, kind, 3, groups=kind), kind)
        scores = self.conv(y, 80, act=None)
        return [boxes, self.add("Sigmoid", [scores], self.shapes[scores])]


def yolo11(path: Path, *, width: float) -> Path:
    net = Yolo11(640)
    c64, c128, c256, c512, c1024 = (int(c * width) for c in (64, 128, 256, 512, 1024))
    x = net.silu(net.silu("image", c64, 3, 2), c128, 3, 2)
    x = net.silu(net.c3k2(x, c256, share=0.25), c256, 3, 2)
    p3 = net.c3k2(x, c512, share=0.25)
    p4 = net.c3k2(net.silu(p3, c512, 3, 2), c512, deep=True)
    p5 = net.psa(net.sppf(net.c3k2(net.silu(p4, c1024, 3, 2), c1024, deep=True)))
    n4 = net.c3k2(net.concat(net.up(p5), p4), c512)
    n3 = net.c3k2(net.concat(net.up(n4), p3), c256)
    n4 = net.c3k2(net.concat(net.silu(n3, c256, 3, 2), n4), c512)
    n5 = net.c3k2(net.concat(net.silu(n4, c512, 3, 2), p5), c1024, deep=True)
    box, kind = max(64, c256 // 4), max(c256, 80)
    outputs = [name for level in (n3, n4, n5) for name in net.detect(level, box, kind)]
    return net.save(outputs, path)


class YoloX(Yolo):
    """The blocks of YOLOX."""

    def __init__(self, side: int, *, is_depthwise: bool) -> None:
        super().__init__(side)
        self._is_depthwise = is_depthwise

    def spread(self, x: str, out: int, stride: int = 1) -> str:
        """3x3; in the smallest size by channel, then across channels."""
        if not self._is_depthwise:
            return self.silu(x, out, 3, stride)
        return self.silu(self.silu(x, self.channels(x), 3, stride, groups=self.channels(x)), out)

    def focus(self, out: int) -> str:
        """Every second pixel, four times."""
        channels, height, width = self.shapes["image"]
        ends = self.constant(np.array([height, width], np.int64))
        axes, steps = (self.constant(np.array(pair, np.int64)) for pair in ((2, 3), (2, 2)))
        parts = []
        for at in ((0, 0), (1, 0), (0, 1), (1, 1)):
            inputs = ["image", self.constant(np.array(at, np.int64)), ends, axes, steps]
            parts.append(self.add("Slice", inputs, (channels, height // 2, width // 2)))
        return self.silu(self.concat(*parts), out, 3)

    def csp(self, x: str, out: int, depth: int, *, adds: bool = False) -> str:
        y, beside = self.silu(x, out // 2), self.silu(x, out // 2)
        for _ in range(depth):
            inner = self.spread(self.silu(y, out // 2), out // 2)
            y = self.sum(inner, y) if adds else inner
        return self.silu(self.concat(y, beside), out)

    def spp(self, x: str) -> str:
        y = self.silu(x, self.channels(x) // 2)
        pools = [self.pool(y, kernel, 1, pad=kernel // 2) for kernel in (5, 9, 13)]
        return self.silu(self.concat(y, *pools), self.channels(x))

    def head(self, level: str, width: int) -> list[str]:
        y = self.silu(level, width)
        kind = self.spread(self.spread(y, width), width)
        place = self.spread(self.spread(y, width), width)
        outputs = [self.conv(place, 4, act=None)]
        for x, count in ((place, 1), (kind, 80)):
            scores = self.conv(x, count, act=None)
            outputs.append(self.add("Sigmoid", [scores], self.shapes[scores]))
        return outputs


def yolox(path: Path, *, width: float, depth: float, side: int, is_depthwise: bool = False) -> Path:
    net = YoloX(side, is_depthwise=is_depthwise)
    c64, c128, c256, c512, c1024 = (int(c * width) for c in (64, 128, 256, 512, 1024))
    few = round(3 * depth)
    x = net.csp(net.spread(net.focus(c64), c128, 2), c128, few, adds=True)
    d3 = net.csp(net.spread(x, c256, 2), c256, 3 * few, adds=True)
    d4 = net.csp(net.spread(d3, c512, 2), c512, 3 * few, adds=True)
    d5 = net.csp(net.spp(net.spread(d4, c1024, 2)), c1024, few)
    f5 = net.silu(d5, c512)
    f4 = net.silu(net.csp(net.concat(net.up(f5), d4), c512, few), c256)
    n3 = net.csp(net.concat(net.up(f4), d3), c256, few)
    n4 = net.csp(net.concat(net.spread(n3, c256, 2), f4), c512, few)
    n5 = net.csp(net.concat(net.spread(n4, c512, 2), f5), c1024, few)
    return net.save([name for level in (n3, n4, n5) for name in net.head(level, c256)], path)


NETWORKS: Mapping[str, Callable[[Path], Path]] = {
    "mobilenet-v1": mobilenet_v1,
    "resnet50": resnet50,
    "inception-v3": inception_v3,
    "yolo11n": lambda path: yolo11(path, width=0.25),
    "yolo11s": lambda path: yolo11(path, width=0.5),
    "yolox-nano": lambda path: yolox(path, width=0.25, depth=0.33, side=416, is_depthwise=True),
    "yolox-tiny": lambda path: yolox(path, width=0.375, depth=0.33, side=416),
    "yolox-s": lambda path: yolox(path, width=0.5, depth=0.33, side=640),
    "yolox-m": lambda path: yolox(path, width=0.75, depth=0.67, side=640),
}
