"""The models of one `edgekit build`: each described, and what became of it.

Invariant: what is wrong with one of several is its own end, in its own place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit.cli.group import EXIT_MISUSED, EXIT_REFUSED
from edgekit.cli.output import remark
from edgekit.cli.progress import Lines, for_terminal
from edgekit.cli.report import check_place
from edgekit_contract.errors import EdgekitError, Misused

if TYPE_CHECKING:
    from edgekit.build import BuildRequest, BuildResult, Built
    from edgekit.build.farm import Outcome
    from edgekit.build.gate import Gate
    from edgekit.build.progress import Progress
    from edgekit.build.project import Project
    from edgekit.emulation import Emulated, Emulator
    from edgekit.release.keys import PrivateKey

__all__ = ["Cases", "Done"]


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a build ended well."""

    result: BuildResult
    emulated: tuple[Emulated, ...]


class Cases:
    """The models of one call, in their order, and what became of each."""

    def __init__(
        self,
        models: Sequence[str | None],
        given: dict[str, Any],
        *,
        contenders: bool,
        dry_run: bool,
    ):
        """Errors: those of the model, where it is the only one."""
        self._models = [model if model is not None else "edgekit.toml" for model in models]
        self._keys: dict[Path, PrivateKey] = {}
        self._ends: dict[int, Done | EdgekitError] = {}
        self._emulators: dict[int, Emulator] = {}
        self._numbers: list[int] = []
        self.requests: list[BuildRequest] = []
        modules = _Modules()
        for number, model in enumerate(models):
            try:
                project = msgspec.structs.replace(
                    _describe(model, [given.get("validation"), given.get("calibration")]), **given
                )
                modules.check(self._models[number], project)
                signs = project.key is not None and not dry_run
                key = self._key(Path(str(project.key))) if signs else None
                request = project.request(key=key, dry_run=dry_run)
                self.requests.append(replace(request, contenders=contenders))
                self._numbers.append(number)
            except EdgekitError as error:
                self._fail(number, error)

    @property
    def done(self) -> list[Done]:
        """Those that did not fail."""
        ends = (end for _, end in sorted(self._ends.items()))
        return [end for end in ends if isinstance(end, Done)]

    @property
    def are_many(self) -> bool:
        return len(self._models) > 1

    def progress(self, *, apart: bool) -> Callable[[BuildRequest], Progress]:
        """Lines where builds run apart: bars of several would draw over each other."""

        from edgekit.build.progress import Named

        def of(request: BuildRequest) -> Progress:
            shown = Lines() if apart else for_terminal()
            return Named(shown, request.name) if self.are_many else shown

        return of

    def open_emulators(self) -> None:
        """What is missing is said before an hour of work, not after it, and a model that can be
        tried on no profile is not built. Errors: those of the model, where it is the only one."""
        from edgekit.build.prebuilt import prebuilt_kind
        from edgekit.emulation import Emulator

        able = []
        for number, request in zip(self._numbers, self.requests, strict=True):
            try:
                self._emulators[number] = Emulator(request.profiles, prebuilt_kind(request))
            except EdgekitError as error:
                self._fail(number, error)
                continue
            able.append((number, request))
            for profile, why in self._emulators[number].left_out.items():
                remark(f"{profile} is not emulated: {why}.")
        self._numbers = [number for number, _ in able]
        self.requests = [request for _, request in able]

    def gate(self, request: BuildRequest) -> Gate | None:
        """What tries the bundles of a request."""
        number = self._numbers[next(i for i, r in enumerate(self.requests) if r is request)]
        emulator = self._emulators.get(number)
        return emulator.try_bundle if emulator is not None else None

    def tell(self, index: int, outcome: Outcome) -> None:
        """As soon as one has ended."""
        if self.are_many and not isinstance(outcome, EdgekitError):
            remark(f"{self._models[self._numbers[index]]}: done.")

    def take(self, outcomes: Sequence[Outcome]) -> None:
        """Errors: that of the only model."""
        for number, outcome in zip(self._numbers, outcomes, strict=True):
            if isinstance(outcome, EdgekitError):
                self._fail(number, outcome)
            else:
                emulator = self._emulators.get(number)
                emulated = emulator.emulated if emulator is not None else ()
                self._ends[number] = Done(result=outcome, emulated=tuple(emulated))

    def check_place(self, report: Path) -> None:
        """Prove that a report can be written, before there is one. Errors: `Misused`."""
        for request in self.requests:
            output = request.output
            if output.is_dir() or report.parent.absolute() != output.absolute():
                check_place(report)

    def report_path(self, path: Path, built: Built) -> Path:
        """Of several models or profiles, a file for each."""
        if self.are_many:
            return path.with_stem(f"{path.stem}-{built.bundle.path.stem}")
        several = len(self.done[0].result.built) > 1
        return path.with_stem(f"{path.stem}-{built.report.profile}") if several else path

    def as_builtins(self, of: Callable[[BuildResult], dict[str, Any]]) -> dict[str, Any]:
        """What `of` tells of the only one, or `builds`: a list of it, or of what failed."""
        if not self.are_many:
            return self._told(self.done[0], of)
        told = []
        for number, end in sorted(self._ends.items()):
            what = (
                {"error": str(end), "misused": isinstance(end, Misused)}
                if isinstance(end, EdgekitError)
                else self._told(end, of)
            )
            told.append({"model": self._models[number], **what})
        return {"builds": told}

    def _told(self, end: Done, of: Callable[[BuildResult], dict[str, Any]]) -> dict[str, Any]:
        return of(end.result) | ({"emulated": end.emulated} if self._emulators else {})

    def exit(self) -> None:
        """Say what failed, once more, where it is read last."""
        failed = {n: end for n, end in self._ends.items() if isinstance(end, EdgekitError)}
        for number, error in sorted(failed.items()):
            remark(f"edgekit: {self._models[number]}: {error}")
        if failed:
            misused = all(isinstance(error, Misused) for error in failed.values())
            click.get_current_context().exit(EXIT_MISUSED if misused else EXIT_REFUSED)

    def _fail(self, number: int, error: EdgekitError) -> None:
        if not self.are_many:
            raise error
        self._ends[number] = error

    def _key(self, path: Path) -> PrivateKey:
        if path not in self._keys:
            self._keys[path] = _open_key(path)
        return self._keys[path]


class _Modules:
    """The user's modules, of which Python keeps one of each name."""

    def __init__(self) -> None:
        self._homes: dict[str, Path] = {}

    def check(self, title: str, project: Project) -> None:
        """Errors: `Misused` where another model's module has the same name."""
        from edgekit_converters.callables import is_callable_name

        path = Path(title)
        home = path.resolve().parent if path.suffix == ".toml" else Path.cwd()
        for name in (project.model, project.calibration, project.validation, project.metric):
            if name is None or not is_callable_name(name) or Path(name).exists():
                continue
            module = name.partition(":")[0].partition(".")[0]
            if self._homes.setdefault(module, home) != home:
                raise Misused(
                    f"the module {module} of {name} is another in {self._homes[module]}: rename "
                    "one, or build the two by themselves."
                )


def _describe(model: str | None, data: list[str | None]) -> Project:
    """What edgekit.toml says: all of the build, or, where a model is named, what is about it."""
    from edgekit.build.project import FILENAME, Project, find_project, load_project
    from edgekit_converters.callables import is_callable_name

    if model is not None and Path(model).suffix != ".toml":
        found = find_project(_places(data))
        about = load_project(found).about_model if found is not None else Project()
        if about != Project():
            remark(f"labels, metric, [preprocess] and [postprocess] are as {found} says.")
        return msgspec.structs.replace(about, model=model)
    if model is None and not Path(FILENAME).is_file():
        raise Misused(
            f"no model, and no {FILENAME} here: name one (edgekit build MODEL), or describe the "
            "build (edgekit new)."
        )
    path = Path(model if model is not None else FILENAME)
    project = load_project(path)
    named = (project.model, project.calibration, project.validation, project.metric)
    if any(name is not None and is_callable_name(name) for name in named):
        sys.path.insert(0, str(path.resolve().parent))  # its modules are beside it
    return project


def _places(data: list[str | None]) -> list[Path]:
    """Where edgekit.toml may be: in or beside the data, or here."""
    paths = [Path(name) for name in data if name is not None and Path(name).exists()]
    inside = [path for path in paths if path.is_dir()]
    return [*inside, *(path.resolve().parent for path in paths), Path()]


def _open_key(path: Path) -> PrivateKey:
    from edgekit.release.keys import find_passphrase, open_key

    ask = _ask if sys.stdin.isatty() else None
    return open_key(
        path, lambda what: find_passphrase(what, environ=os.environ, ask=ask, warn=remark)
    )


def _ask(prompt: str) -> str:
    return str(click.prompt(prompt, hide_input=True, default="", show_default=False, err=True))
