"""PyTorch: exported programs (`.pt2`), and modules with example inputs from a callable.

A callable returns `(module, inputs)` or `(module, inputs, dynamic_shapes)`: inputs are a tensor, a
tuple of tensors, or a dict of them by the names of `forward`; without shapes the first axis becomes
the batch where the module allows it. Source: PyTorch documentation, "torch.export" and
"torch.onnx".
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from edgekit_contract.errors import Refused
from edgekit_converters.sources.doors.door import (
    Door,
    NotConvertible,
    Opened,
    no_files,
    one_line,
    refusing,
)
from edgekit_converters.sources.exported_program import cleaned, is_exported_program

__all__ = ["DOORS", "MODULES", "PACKAGES", "Module"]

MODULES: Final = ("torch", "onnxscript")
PACKAGES: Final = ("torch", "onnxscript")
_OPSET: Final = 18
_NO_OPERATOR: Final = re.compile(r"No ONNX function found for <[^>]*?op='([\w.:]+)'|for (\w+::\w+)")
_WANTED: Final = (
    "return (module, inputs), inputs being a tensor, a tuple of tensors or a dict by the names of "
    "forward"
)


def _open_file(path: Path) -> Program:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import torch

    safe = Path(tempfile.gettempdir()) / "program.pt2"
    cleaned(path, safe)
    with refusing(
        lambda said: Refused(
            f"PyTorch {torch.__version__} does not open {path.name} ({said}): save it again with "
            "torch.export.save."
        )
    ):
        return Program(torch.export.load(safe), path.name)


def _open_object(value: Any, name: str) -> Opened:
    import torch

    if isinstance(value, torch.export.ExportedProgram):
        return Program(value, name)
    module, *rest = value if isinstance(value, tuple) else (value,)
    inputs = rest[0] if rest else getattr(module, "example_input_array", None)
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    leaves = (
        list(inputs.values())
        if isinstance(inputs, dict)
        else list(inputs)
        if isinstance(inputs, tuple | list)
        else []
    )
    other = next((leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)), None)
    if not leaves or other is not None:
        what = f"an input that is a {type(other).__name__}" if leaves else "no example inputs"
        raise Refused(f"{name} returned a module with {what}: {_WANTED}.")
    args, words = ((), inputs) if isinstance(inputs, dict) else (tuple(leaves), {})
    shapes = rest[1] if len(rest) > 1 else None
    made = Module(module, name, args, words, shapes=shapes)
    made.example = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in zip(made.inputs, leaves, strict=True)
    }
    return made


class Module:
    """A module, and inputs to trace it with."""

    def __init__(
        self,
        module: Any,
        title: str,
        args: tuple[Any, ...],
        words: Mapping[str, Any],
        *,
        shapes: Any = None,
        inputs: Sequence[str] | None = None,
        axes: Mapping[int, str] | None = None,
    ) -> None:
        """`shapes` as torch.export takes them; `inputs` names `args`, `axes` open axes."""
        self._module, self._title, self._args, self._words = module.eval(), title, args, dict(words)
        self._shapes, self._axes = shapes, axes
        self.inputs = list(inputs or [*_parameters(module, len(args)), *words])
        self.example: Mapping[str, np.ndarray] | None = None

    def export(self, out: Path) -> Sequence[str]:
        import torch

        self._module.requires_grad_(False)
        program, remarks = None, []
        if self._shapes is None:
            program = self._with_open_batch()
            if program is None:
                remarks.append(
                    "The batch is fixed to that of the example inputs: PyTorch cannot export the "
                    "module with an open one."
                )
        if program is None:
            with refusing(
                lambda said: NotConvertible(
                    self._title,
                    f"torch.export: {said}",
                    "change forward so that torch.export can trace it, or export it to ONNX "
                    "yourself",
                )
            ):
                program = torch.export.export(
                    self._module, self._args, self._words, dynamic_shapes=self._shapes
                )
        Program(program, self._title, inputs=self.inputs, axes=self._axes).export(out)
        return remarks

    def _with_open_batch(self) -> Any:
        """None where it cannot be."""
        import torch

        tensors = (*self._args, *self._words.values())
        if not all(tensor.ndim for tensor in tensors) or len({t.shape[0] for t in tensors}) != 1:
            return None
        batch = torch.export.Dim("batch")

        def doubled(tensor: Any) -> Any:  # PyTorch takes an axis of 1 for one that stays so
            return torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor

        args = tuple(map(doubled, self._args))
        words = {name: doubled(tensor) for name, tensor in self._words.items()}
        shapes: Any = {name: {0: batch} for name in words} or tuple({0: batch} for _ in args)
        with contextlib.suppress(Exception):  # the attempt with a fixed batch tells why
            return torch.export.export(self._module, args, words, dynamic_shapes=shapes)
        return None

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import torch

        tensors = [torch.from_numpy(np.array(feeds[name])) for name in self.inputs]
        with torch.no_grad():
            if self._words:
                return _named(self._module(**dict(zip(self._words, tensors, strict=True))))
            return _named(self._module(*tensors))


class Program:
    """An exported program."""

    example: Mapping[str, np.ndarray] | None = None

    def __init__(
        self,
        program: Any,
        title: str,
        *,
        inputs: Sequence[str] | None = None,
        axes: Mapping[int, str] | None = None,
    ) -> None:
        self._program, self._title = program, title
        self._module: Any = None
        self._axes = {0: "batch"} if axes is None else axes
        signature = program.graph_signature
        for part in (*signature.user_inputs, *signature.user_outputs):
            if not isinstance(part, str):
                raise Refused(
                    f"{title} takes or returns {part!r:.60}, which is no tensor: give it tensors "
                    "only, and return tensors only."
                )
        self._inputs = list(inputs or signature.user_inputs)

    def export(self, out: Path) -> Sequence[str]:
        import torch
        from torch.utils import _pytree

        spec = self._program.call_spec.out_spec
        outputs = list(_named(_pytree.tree_unflatten(list(range(spec.num_leaves)), spec)))
        try:
            made = torch.onnx.export(
                self._program,
                dynamo=True,
                opset_version=_OPSET,
                verbose=False,
                input_names=self._inputs,
                output_names=outputs,
            )
            made.save(out, external_data=True)
        except MemoryError:
            raise
        except Exception as error:  # the exporter has no class of its own for all of it
            raise _not_convertible(self._title, error) from error
        _name_axes(out, self._axes)
        return ()

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import torch
        from torch.utils import _pytree

        tensors = [torch.from_numpy(np.array(feeds[name])) for name in self._inputs]
        args, words = _pytree.tree_unflatten(tensors, self._program.call_spec.in_spec)
        if self._module is None:
            self._module = self._program.module()
        with torch.no_grad():
            return _named(self._module(*args, **words))


def _parameters(module: Any, count: int) -> list[str]:
    """Names of the first so many parameters of `forward`."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(count - len(names))]
        names.append(parameter.name)
    return names[:count]


def _named(found: Any) -> dict[str, Any]:
    """Parts of what a module returns, by their keys and places; `output` for a single tensor.

    Tensors become arrays.
    """
    from torch.utils import _pytree

    parts = {}
    for path, leaf in _pytree.tree_flatten_with_path(found)[0]:
        steps = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
        name = "_".join(steps)
        if not name or name[0].isdigit():
            name = f"output_{name}".rstrip("_")
        parts[name] = leaf.detach().cpu().numpy() if hasattr(leaf, "detach") else leaf
    return parts


def _name_axes(file: Path, axes: Mapping[int, str]) -> None:
    """Call open axes what they are: the exporter numbers them."""
    model = onnx.load_model(file, load_external_data=False)
    names: dict[str, str] = {}
    for value in model.graph.input:
        for index, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.dim_param and index in axes and axes[index] not in names.values():
                names.setdefault(axis.dim_param, axes[index])
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    onnx.save_model(model, file)


def _not_convertible(title: str, error: Exception) -> NotConvertible:
    seen: BaseException | None = error
    while seen is not None:
        if (found := _NO_OPERATOR.search(str(seen))) is not None:
            operator = next(group for group in found.groups() if group)
            return NotConvertible(
                title,
                f"PyTorch's exporter has no ONNX form of the operator {operator}",
                "write that part of the module with other operators",
            )
        seen = seen.__cause__ or seen.__context__
    return NotConvertible(
        title,
        f"torch.onnx: {one_line(error)}",
        "export it with another version of PyTorch, or to ONNX yourself",
    )


DOORS: Final = (
    Door(
        name="PyTorch",
        extra="pytorch",
        modules=MODULES,
        packages=PACKAGES,
        reads=is_exported_program,
        files=no_files,
        holds=frozenset(
            {"torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"}
        ),
        open_file=_open_file,
        open_object=_open_object,
    ),
)
