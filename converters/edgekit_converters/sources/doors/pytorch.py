"""PyTorch: exported programs (`.pt2`), and modules with example inputs from a callable.

A callable returns `(module, inputs)` or `(module, inputs, dynamic_shapes)`: inputs are a tensor, a
tuple of tensors, or a dict of them by the names of `forward`; without shapes the first axis becomes
the batch where the module allows it. Source: PyTorch documentation, "torch.export" and
"torch.onnx".
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_converters.sources.doors.door import Door, NotConvertible, no_files
from edgekit_converters.sources.exported_program import cleaned, is_exported_program

__all__ = ["DOORS", "MODULES", "PACKAGES", "Program", "program_of"]

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
    try:
        program = torch.export.load(safe)
    except Exception as error:  # whatever its parser meets
        raise Refused(
            f"PyTorch {torch.__version__} does not open {path.name} ({_first_line(error)}): save "
            "it again with torch.export.save."
        ) from error
    return Program(program, path.name)


def _open_object(value: Any, name: str) -> Program:
    import torch

    if isinstance(value, torch.export.ExportedProgram):
        return Program(value, name)
    module, *rest = value if isinstance(value, tuple) else (value,)
    inputs = rest[0] if rest else getattr(module, "example_input_array", None)
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    leaves = (
        list(inputs.values()) if isinstance(inputs, dict)
        else list(inputs) if isinstance(inputs, tuple | list) else []
    )  # fmt: skip
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise Refused(f"{name} returned a module without example inputs: {_WANTED}.")
    module.eval()
    args, words = ((), inputs) if isinstance(inputs, dict) else (tuple(leaves), {})
    return program_of(module, name, args, words, shapes=rest[1] if len(rest) > 1 else None)


def program_of(
    module: Any,
    title: str,
    args: tuple[Any, ...],
    words: Mapping[str, Any],
    *,
    shapes: Any = None,
    input_names: Sequence[str] | None = None,
) -> Program:
    """Trace a module. Errors: `NotConvertible`."""
    import torch

    remarks = []
    module.requires_grad_(False)
    if shapes is None:
        program = _with_open_batch(module, args, words)
        if program is None:
            lengths = sorted({leaf.shape[0] for leaf in (*args, *words.values()) if leaf.ndim})
            remarks.append(
                f"The batch is fixed to that of the example inputs ({lengths}): PyTorch cannot "
                "export the module with an open one."
            )
    else:
        program = None
    if program is None:
        try:
            program = torch.export.export(module, args, dict(words), dynamic_shapes=shapes)
        except Exception as error:  # whatever tracing meets
            raise NotConvertible(
                title,
                f"torch.export: {_first_line(error)}",
                "change forward so that torch.export can trace it, or export it to ONNX yourself",
            ) from error
    return Program(
        program, title, module=module, args=args, words=words, remarks=remarks,
        input_names=input_names,
    )  # fmt: skip


def _with_open_batch(module: Any, args: tuple[Any, ...], words: Mapping[str, Any]) -> Any:
    """None where it cannot be."""
    import torch

    tensors = (*args, *words.values())
    if not all(tensor.ndim for tensor in tensors) or len({t.shape[0] for t in tensors}) != 1:
        return None
    batch = torch.export.Dim("batch")

    def doubled(tensor: Any) -> Any:  # PyTorch takes an axis of 1 for one that stays so
        return torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor

    more = tuple(doubled(tensor) for tensor in args)
    named = {name: doubled(tensor) for name, tensor in words.items()}
    shapes = [{0: batch} for _ in args] if args else {name: {0: batch} for name in words}
    with contextlib.suppress(Exception):  # the attempt with a fixed batch tells why
        return torch.export.export(
            module, more, named, dynamic_shapes=tuple(shapes) if args else shapes
        )
    return None


class Program:
    """An exported program, and the module that it is of, where there is one."""

    def __init__(
        self,
        program: Any,
        title: str,
        *,
        module: Any = None,
        args: tuple[Any, ...] = (),
        words: Mapping[str, Any] | None = None,
        remarks: Sequence[str] = (),
        input_names: Sequence[str] | None = None,
    ) -> None:
        self._program, self._title, self._remarks = program, title, list(remarks)
        self._module = module
        self._by_word = tuple(words or ())
        signature = program.graph_signature
        found = [str(name) for name in signature.user_inputs]
        for part in (*signature.user_inputs, *signature.user_outputs):
            if not isinstance(part, str):
                raise Refused(
                    f"{title} takes or returns {part!r:.60}, which is no tensor: give it tensors "
                    "only, and return tensors only."
                )
        self._inputs = list(input_names or found)
        self._outputs = _output_names(program)
        self.example: Mapping[str, np.ndarray] | None = None
        if module is not None:
            tensors = (*args, *(words or {}).values())
            self.example = {
                name: tensor.detach().cpu().numpy()
                for name, tensor in zip(self._inputs, tensors, strict=True)
            }

    def add_remarks(self, remarks: Sequence[str]) -> None:
        """For the report."""
        self._remarks += remarks

    def export(self, out: Path) -> Sequence[str]:
        import torch

        try:
            torch.onnx.export(
                self._program, f=out, dynamo=True, opset_version=_OPSET, verbose=False,
                input_names=self._inputs, output_names=self._outputs, optimize=True,
            )  # fmt: skip
        except Exception as error:  # the exporter has no class of its own for all of it
            raise _not_convertible(self._title, error) from error
        return self._remarks

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import torch
        from torch.utils import _pytree

        tensors = [torch.from_numpy(np.array(feeds[name])) for name in self._inputs]
        with torch.no_grad():
            if self._module is None:
                args, words = _pytree.tree_unflatten(tensors, self._program.call_spec.in_spec)
                found = self._program.module()(*args, **words)
            elif self._by_word:
                found = self._module(**dict(zip(self._by_word, tensors, strict=True)))
            else:
                found = self._module(*tensors)
        leaves = _pytree.tree_flatten(found)[0]
        return {
            name: leaf.detach().cpu().numpy()
            for name, leaf in zip(self._outputs, leaves, strict=True)
        }


def _output_names(program: Any) -> list[str]:
    """Keys and places of what it returns; `output` where that is a single tensor."""
    from torch.utils import _pytree

    spec = program.call_spec.out_spec
    numbered = _pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = []
    for path, _ in _pytree.tree_flatten_with_path(numbered)[0]:
        parts = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
        name = "_".join(parts)
        names.append(name if name and not name[0].isdigit() else f"output_{name}".rstrip("_"))
    return names


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
        f"torch.onnx: {_first_line(error)}",
        "export it with another version of PyTorch, or to ONNX yourself",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


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
