"""Writes models of TensorFlow and Keras into a directory: some odd, some that would do more than
compute, were they loaded as they are. A program: `PYTHON tests/tensorflow_files.py DIR`, with the
Python of the `tensorflow` environment. Whatever got through writes `DIR/written`, or reads
`DIR/secret`.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
OUT = Path(sys.argv[1])
WRITTEN, SECRET = str(OUT / "written"), str(OUT / "secret")
ROW = tf.TensorSpec([None, 4], tf.float32, name="x")


def odd() -> None:
    keras.utils.set_random_seed(1)
    for kind in ("LSTM", "GRU"):
        model = keras.Sequential([keras.Input((6, 4), name="x"), getattr(keras.layers, kind)(5)])
        model.export(f"{OUT}/{kind}", verbose=False)
    rows = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(7, 2)])
    rows.export(f"{OUT}/Embedding", verbose=False)
    tf.saved_model.save(rows, f"{OUT}/unrestored")


class Trained(tf.Module):
    """Served beside what trains and saves it, as for training on a device."""

    def __init__(self) -> None:
        self.v = tf.Variable([1.0, 2.0, 3.0, 4.0])

    @tf.function(input_signature=[ROW])
    def serve(self, x: Any) -> Any:
        return {"y": x * self.v}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def save(self, path: Any) -> Any:
        tf.raw_ops.Save(filename=path, tensor_names=["v"], data=[self.v.read_value()])
        return {"path": path}


class Writing(Trained):
    @tf.function(input_signature=[ROW])
    def serve(self, x: Any) -> Any:
        tf.io.write_file(WRITTEN, "while it runs")
        return {"y": x * self.v}


def served() -> None:
    both = Trained()
    signatures = {"serving_default": both.serve, "save": both.save}
    tf.saved_model.save(both, f"{OUT}/with-training", signatures=signatures)
    writing = Writing()
    tf.saved_model.save(writing, f"{OUT}/when-run", signatures={"serving_default": writing.serve})
    opening = keras.layers.TFSMLayer(f"{OUT}/when-run", call_endpoint="serving_default")
    keras.Sequential([keras.Input((4,)), opening]).save(f"{OUT}/opening.keras")


def graph(name: str, build: Callable[[Any], Any], *, main_op: Any = None) -> None:
    """A graph of TensorFlow 1 from x to y."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        y = build(x) * v1.get_variable("v", initializer=2.0)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(f"{OUT}/{name}")
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=main_op and main_op()
        )
        builder.save()


def write(then: Any) -> Any:
    with tf.control_dependencies([tf.raw_ops.WriteFile(filename=WRITTEN, contents="written")]):
        return tf.identity(then)


def stand_in(x: Any) -> Any:
    """Of two functions that implement the same, Grappler takes the one for this processor."""

    @tf.function(
        input_signature=[ROW], experimental_attributes={"api_implements": "it"}, autograph=False
    )
    def doubling(a: Any) -> Any:
        return a * 2.0

    @tf.function(
        input_signature=[ROW],
        experimental_attributes={"api_implements": "it", "api_preferred_device": "CPU"},
        autograph=False,
    )
    def writing(a: Any) -> Any:
        return write(a * 3.0)

    y = doubling(x)
    writing.get_concrete_function().add_to_graph()
    return y


def gradient(x: Any) -> Any:
    from tensorflow.python.framework import function

    @function.Defun(tf.float32, tf.float32)
    def backward(a: Any, dy: Any) -> Any:
        return write(dy + 0.0 * a)

    @function.Defun(tf.float32, grad_func=backward)
    def forward(a: Any) -> Any:
        return a * 2.0

    return tf.gradients(forward(x), x)[0]


def graphs() -> None:
    Path(SECRET).write_bytes(np.arange(16, dtype=np.float32).tobytes())
    written = {"filename": WRITTEN, "contents": "while it loads"}
    graph("when-loaded", tf.identity, main_op=lambda: tf.raw_ops.WriteFile(**written))
    graph("stand-in", stand_in)
    graph("gradient", gradient)
    secret = {"dtype": tf.float32, "shape": [4], "memory_region_name": SECRET}
    graph("reading", lambda x: x + tf.raw_ops.ImmutableConst(**secret))


def hidden() -> None:
    """A function by the name of the operator that is run."""
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(f"{OUT}/when-loaded", f"{OUT}/hidden")
    file = OUT / "hidden" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    saved.meta_graphs[0].graph_def.library.function.add().signature.name = "WriteFile"
    file.write_bytes(saved.SerializeToString())


def files() -> None:
    doubled = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    for suffix in ("keras", "h5"):
        doubled.save(f"{OUT}/lambda.{suffix}")
        dense.save(f"{OUT}/outside.{suffix}")
    with h5py.File(f"{OUT}/outside.h5", "r+") as file:
        take_from_outside(file)
    with zipfile.ZipFile(f"{OUT}/outside.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (OUT / "weights").write_bytes(members["model.weights.h5"])
    with h5py.File(OUT / "weights", "r+") as file:
        take_from_outside(file)
    members["model.weights.h5"] = (OUT / "weights").read_bytes()
    with zipfile.ZipFile(f"{OUT}/outside.keras", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def take_from_outside(file: Any) -> None:
    names = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    for name in names:
        if file[name].shape == (4, 4):
            del file[name]
            file.create_dataset(name, (4, 4), np.float32, external=[(SECRET, 0, 64)])


if __name__ == "__main__":
    odd()
    served()
    graphs()
    hidden()
    files()
