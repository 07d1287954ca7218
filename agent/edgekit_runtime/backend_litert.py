"""LiteRT behind `session.Session`: ai-edge-litert, or the older tflite-runtime.

Its XNNPACK delegate is asked for wherever the model may be rewritten; operators that it does not
take stay with LiteRT's own kernels, and of some models it takes none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_contract.manifest import TensorSpec
from edgekit_contract.messages import Execution
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import (
    InferenceFailed,
    ModelUnloadable,
    Optimization,
    RuntimeMissing,
    SessionOptions,
    Tensors,
    check_feeds,
    execution,
    installed_version,
)

_DISTRIBUTIONS: Final = ("ai-edge-litert", "tflite-runtime")
_XNNPACK: Final = "XNNPACK"
_BUILTIN: Final = "built-in kernels"
_DELEGATED: Final = "DELEGATE"
"""What the interpreter calls the node that stands for all that a delegate has taken."""


def version() -> str | None:
    return installed_version(*_DISTRIBUTIONS)


def _interpreter_module() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ModuleNotFoundError:
        try:
            from tflite_runtime import interpreter  # the same API under its old name
        except ImportError as error:
            raise RuntimeMissing(RuntimeKind.LITERT, "tflite", error) from error
    except ImportError as error:
        raise RuntimeMissing(RuntimeKind.LITERT, "tflite", error) from error
    return interpreter


def open_model(path: Path, options: SessionOptions) -> LiteRtSession:
    """Load a .tflite file. Errors: `RuntimeMissing`, `ModelUnloadable`."""
    module = _interpreter_module()
    resolver = (
        module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        if options.optimization is Optimization.NONE
        else module.OpResolverType.AUTO
    )

    def interpreter() -> Any:
        return module.Interpreter(
            model_path=str(path),
            num_threads=options.threads,
            experimental_op_resolver_type=resolver,
        )

    asked = (_BUILTIN,) if options.optimization is Optimization.NONE else (_XNNPACK, _BUILTIN)
    try:
        return LiteRtSession(interpreter, path, asked)
    except (ValueError, RuntimeError) as error:
        raise ModelUnloadable(path, str(error)) from error


class LiteRtSession:
    """Dynamic axes are those that the model's shape signature marks with -1.

    Invariant: a model whose open axes are too short in its file (it says 1 for each) is prepared
    when the first inputs tell their lengths, as its users have to do, too.
    """

    def __init__(self, make: Callable[[], Any], path: Path, asked: tuple[str, ...]) -> None:
        """`make` opens the file. Errors: those of the interpreter."""
        self._make, self._asked = make, asked
        self._interpreter = make()
        self._in = {d["name"]: d for d in self._interpreter.get_input_details()}
        self._out = {d["name"]: d for d in self._interpreter.get_output_details()}
        self.inputs = tuple(_spec(d, path) for d in self._in.values())
        self.outputs = tuple(_spec(d, path) for d in self._out.values())
        self._shapes: dict[str, tuple[int, ...]] = {}
        """That the interpreter is prepared for; empty: it is not."""
        try:
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError):
            if all(isinstance(axis, int) for spec in self.inputs for axis in spec.shape):
                raise
            self._interpreter = make()
        else:
            self._shapes = {name: tuple(d["shape"]) for name, d in self._in.items()}

    @property
    def execution(self) -> Execution:
        """Whether XNNPACK has taken a part of the model, as far as this version of LiteRT tells."""
        if _XNNPACK not in self._asked:
            return execution(self._asked, self._asked)
        if not self._shapes:
            return execution(
                self._asked, (_BUILTIN,), {_XNNPACK: "no inputs have told their lengths yet."}
            )
        # the one way to see it from Python; not public, and the same since tflite-runtime 2.5
        listed = getattr(self._interpreter, "_get_ops_details", None)
        if listed is None:
            return execution(self._asked, (_BUILTIN,), {_XNNPACK: "this LiteRT does not tell."})
        operators = [operator["op_name"] for operator in listed()]
        if _DELEGATED in operators:
            return execution(self._asked, self._asked)
        return execution(
            self._asked, (_BUILTIN,), {_XNNPACK: "it takes none of this model's operators."}
        )

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        try:
            shapes = {name: feeds[name].shape for name in self._in}
            if shapes != self._shapes:
                self._resize(shapes)
            for name, detail in self._in.items():
                self._interpreter.set_tensor(detail["index"], feeds[name])
            self._interpreter.invoke()
            # get_tensor copies: the next call may not change what this one returned
            return {
                name: self._interpreter.get_tensor(detail["index"])
                for name, detail in self._out.items()
            }
        except (ValueError, RuntimeError) as error:
            raise InferenceFailed(str(error)) from error

    def _resize(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Errors: those of the interpreter."""
        self._shapes = {}  # until the interpreter has taken the new ones
        try:
            self._prepare(self._interpreter, shapes)
        except RuntimeError:  # a delegate that has taken one length may not take another
            other = self._make()
            self._prepare(other, shapes)
            self._interpreter = other
        self._shapes = shapes

    def _prepare(self, interpreter: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            interpreter.resize_tensor_input(self._in[name]["index"], shape)
        interpreter.allocate_tensors()

    def close(self) -> None:
        self._interpreter = None


def _spec(detail: dict[str, Any], path: Path) -> TensorSpec:
    dtype = np.dtype(detail["dtype"]).name
    if dtype.startswith(("bytes", "str", "object", "complex")):
        raise ModelUnloadable(
            path, f"{detail['name']!r} is {dtype}; edgekit runs models whose values are numbers"
        )
    signature = detail.get("shape_signature", detail["shape"])
    axes = signature if len(signature) == len(detail["shape"]) else detail["shape"]
    shape = tuple(int(a) if a >= 0 else f"axis{i}" for i, a in enumerate(axes))
    return TensorSpec(name=detail["name"], dtype=dtype, shape=shape)
