"""PyTorch's `.pt2` archives, with all that could run code taken out before PyTorch sees them.

`torch.export.load` unpickles sample inputs and constants without a limit where the safe way fails,
evaluates the texts of symbolic sizes, compiles those of guards, imports what a tree of inputs
names, looks up operators anywhere in `torch`, and loads compiled libraries. Its documentation says
so: "Never load data from an untrusted source."

Invariant: what `cleaned` writes holds tensors and a graph of known operators; texts in it that are
evaluated have names of a short list only. Source: torch/export/pt2_archive and
torch/_export/serde/serialize.py of PyTorch 2.13.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgekit_contract.errors import Refused
from edgekit_converters.sources import peek

__all__ = ["cleaned", "is_exported_program"]

_MODEL: Final = "models/model.json"
_LEGACY: Final = "serialized_exported_program.json"
_MAX_JSON_BYTES: Final = 256 << 20
_KEPT: Final = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|version"
    r"|data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|models/model\.json"
)
"""Entries, below the archive's folder, that are taken over."""
_OPERATORS: Final = re.compile(
    r"torch\.ops\.(?!aten\.(from_file|save|_save|_print|warn)\b)\w+\.\w+(\.\w+)?"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem"
    r"|and_|or_|xor|not_|lshift|rshift)"
)
_SYMBOLIC_NAMES: Final = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Max Min Mod Abs Eq Ne Equality Unequality Lt Le Gt "
    "Ge StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not Xor Piecewise floor "
    "ceiling sqrt oo zoo true false True False positive integer nonnegative nonzero real negative "
    "even odd FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv "
    "LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv TruncToFloat TruncToInt "
    "RoundToInt RoundDecimal ToFloat Identity IsNonOverlappingAndDenseIndicator int_oo precision "
    "finite commutative".split()
)
_SYMBOL_TEXT: Final = re.compile(r"'[A-Za-z]\w{0,40}'")
_WORD: Final = re.compile(r"[^\W\d]\w*")
_SYMBOL: Final = re.compile(r"(s|u|zf|zuf|f)\d+")
_PLAIN: Final = re.compile(r"[\w\s(),.+\-*/=<>!&|~%]*")
_TREE_TYPES: Final = frozenset(
    {None, "builtins.list", "builtins.tuple", "builtins.dict", "collections.OrderedDict"}
)


def is_exported_program(path: Path) -> bool:
    """Whether a file is such an archive, new or old. Errors: `Refused`, `OSError`."""
    names = peek.zip_names(path)
    if _LEGACY in names:
        return True
    for name in names:
        if name.rpartition("/")[2] == "archive_format":
            return peek.entry(path, name, limit_bytes=16).strip() == b"pt2"
    return False


def cleaned(path: Path, out: Path) -> None:
    """Write the archive anew, without what nobody needs. Errors: `Refused`."""
    names = peek.zip_names(path)
    if _LEGACY in names:
        raise Refused(
            f"{path.name} is of PyTorch 2.7 or older: load it there, and save it with "
            "torch.export.save of a newer one."
        )
    root = next(name[: -len(_MODEL)] for name in [*names, _MODEL] if name.endswith(_MODEL))
    if root + _MODEL not in names:
        raise _refused(path, "it holds no program 'model'")
    if len(set(names)) != len(names):
        raise _refused(path, "an entry is in it twice")
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as writer:
            for name in names:
                inner = name.removeprefix(root)
                if "aotinductor" in inner and not name.endswith("/"):
                    raise _refused(path, "it holds compiled code")
                if not name.startswith(root) or not _KEPT.fullmatch(inner):
                    continue
                content = archive.read(name)
                if inner.endswith(".json"):
                    content = _json(path, inner, content)
                writer.writestr(f"{root or 'model/'}{inner}", content)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, RecursionError) as error:
        raise _refused(path, f"it is damaged: {error}") from error


def _refused(path: Path, why: str) -> Refused:
    return Refused(
        f"{path.name} is no exported program that is safe to open ({why}): save it again with "
        "torch.export.save, or name a package.module:callable that makes the model."
    )


def _json(path: Path, name: str, content: bytes) -> bytes:
    if len(content) > _MAX_JSON_BYTES:
        raise _refused(path, f"{name} has {len(content) >> 20} MiB")
    value = json.loads(content)
    if not isinstance(value, dict):
        raise _refused(path, f"{name} is no object")
    if name == _MODEL:
        _clean_program(path, value)
    else:
        for key, payload in (value.get("config") or {}).items():
            where = str(payload.get("path_name", "")) if isinstance(payload, dict) else ""
            if not re.fullmatch(r"(weight|tensor)_\w+", where):
                raise _refused(path, f"{key[:80]!r} is no tensor")
    return json.dumps(value).encode()


def _clean_program(path: Path, program: dict[str, Any]) -> None:
    """Errors: `Refused`."""
    program["guards_code"] = []
    for kind, value in _walk(program):
        if kind == "metadata" and isinstance(value, dict):
            value.clear()
        elif kind == "target" and not (value is None or isinstance(value, str)):
            raise _refused(path, f"an operator is {value!r:.80}")
        elif kind == "expr_str" and not _is_symbolic(value):
            raise _refused(path, f"a size is {value!r:.80}")
        elif kind in ("in_spec", "out_spec") and value and not _is_plain_tree(value):
            raise _refused(path, f"its inputs or outputs are {value!r:.80}")
        elif kind == "nodes" and isinstance(value, list):
            for node in value:
                target = node.get("target") if isinstance(node, dict) else None
                if not isinstance(target, str) or not _OPERATORS.fullmatch(target):
                    raise _refused(path, f"an operator is {target!r:.80}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of all objects in a JSON value."""
    left = [value]
    while left:
        here = left.pop()
        if isinstance(here, dict):
            yield from here.items()
            left += here.values()
        elif isinstance(here, list):
            left += here


def _is_symbolic(text: Any) -> bool:
    """A number, symbol or formula of sizes, which sympy may evaluate."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    plain = _SYMBOL_TEXT.sub(" ", text)
    if not _PLAIN.fullmatch(plain) or re.search(r"\.\s*[^\W\d]|__", plain):
        return False
    return all(word in _SYMBOLIC_NAMES or _SYMBOL.fullmatch(word) for word in _WORD.findall(plain))


def _is_plain_tree(text: Any) -> bool:
    """Tuples, lists and dicts, as `torch.utils._pytree.treespec_dumps` writes them."""
    try:
        tree = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    return all(value in _TREE_TYPES for kind, value in _walk(tree) if kind == "type")
