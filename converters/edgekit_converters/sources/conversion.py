"""A model of another framework becomes an ONNX file, and proves that it computes the same.

Invariant: the framework is imported, and the model opened, only in child processes with limits of
time, memory and disk; the user's files are only read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from edgekit_contract.errors import Refused
from edgekit_converters import isolation
from edgekit_converters.sources import doors
from edgekit_converters.sources.agreement import Agreement, Disagrees
from edgekit_converters.sources.doors.door import Door
from edgekit_converters.sources.workbench import Converted, Given

__all__ = ["CONVERSION_S", "Conversion", "convert", "given_callable", "given_path"]

CONVERSION_S: Final = 50.0
"""How long a conversion may take by itself, and as long again its comparison."""
_WORKBENCH: Final = "edgekit_converters.sources.workbench"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a model came to be an ONNX file."""

    given: Given
    converted: Converted
    directory: Path
    """Scratch that the conversion wrote into."""
    bounds: isolation.Limits

    @property
    def path(self) -> Path:
        return self.directory / "converted.onnx"

    @property
    def framework(self) -> str:
        """With its version."""
        versions = self.converted.versions
        for package in doors.find_door(self.converted.door).packages:
            if package in versions:
                return f"{package} {versions[package]}"
        return self.converted.door

    def check(
        self,
        model: Path,
        feeds: Sequence[Path],
        *,
        data: str,
        made_up: bool = False,
        run: isolation.Run = isolation.run,
    ) -> str:
        """Compare `model` with its framework on these tensor files; a sentence for the report.

        `data` says in the plural what they are. Errors: `Refused`, `agreement.Disagrees`.
        """
        words = {
            "given": msgspec.to_builtins(self.given),
            "path": str(model),
            "feeds": [str(path) for path in feeds],
            "example": str(self.directory / "example.npz"),
        }
        step = f"running {self.given.title} in {self.converted.door}"
        try:
            found = run(step, f"{_WORKBENCH}:check", words, self.bounds)
        except isolation.StepFailed as error:
            check = "give --validation data" if made_up else "check that the data are what it takes"
            raise Refused(
                f"{step} failed: {error.detail}; {check}, or {_remedy(error, self.given)}"
            ) from error
        agreed = msgspec.convert(found, Agreement)
        jumps = doors.find_door(self.converted.door).jumps
        try:
            agreed.demand(self.given.title, self.framework, jumps=jumps)
        except Disagrees as error:
            if not made_up:
                raise
            raise Refused(
                f"{error} But inputs were made up: if it takes others, give --validation data."
            ) from error
        return agreed.sentence(self.framework, data)


def given_path(path: Path, door: Door) -> Given:
    return Given(title=path.name, path=str(path.resolve()), door=door.name)


def given_callable(name: str) -> Given:
    return Given(
        title=name,
        import_from=tuple(str(Path(path or ".").resolve()) for path in sys.path),
        directory=str(Path.cwd()),
    )


def convert(
    given: Given,
    *,
    size_bytes: int,
    scratch: Path,
    run: isolation.Run = isolation.run,
    conversion_s: float = CONVERSION_S,
) -> Conversion:
    """Write a model as ONNX. `size_bytes` is that of its files, as far as they are known.

    Errors: `ExtraMissing`, `EnvironmentMissing`, `Refused`.
    """
    if given.door is not None:
        doors.find_door(given.door).check_installed(given.title)
    directory = scratch / "conversion"
    directory.mkdir()
    sized = isolation.limits_for(size_bytes, timeout_s=conversion_s)
    bounds = replace(sized, directory=directory)
    words = {
        "given": msgspec.to_builtins(given),
        "out": str(directory / "converted.onnx"),
        "example": str(directory / "example.npz"),
    }
    step = f"converting {given.title}"
    try:
        found = run(step, f"{_WORKBENCH}:convert", words, bounds)
    except isolation.StepFailed as error:
        raise Refused(f"{step} failed: {error.detail}; {_remedy(error, given)}") from error
    conversion = Conversion(
        given=given,
        converted=msgspec.convert(found, Converted),
        directory=directory,
        bounds=bounds,
    )
    if not conversion.path.is_file():
        raise Refused(f"{step} ended well and wrote nothing: convert it to ONNX yourself.")
    return conversion


def _remedy(error: isolation.StepFailed, given: Given) -> str:
    if error.timed_out:
        return "give it longer (--conversion-time), or convert it to ONNX yourself."
    if given.path is None:
        return "mend that function."
    return "save it again, or convert it to ONNX yourself."
