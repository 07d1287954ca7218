"""edgekit.toml: a build, described once and repeated by `edgekit build`. See docs/project.md.

Invariant: unknown tables and keys are refused, so that a misspelt one is not silently ignored;
paths in the file are relative to it, those of a `Project` to the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec

import edgekit_profiles
from edgekit.build.metrics.options import DEFAULTS, CtcOptions, DetectionOptions, MetricOptions
from edgekit.build.request import BuildRequest, Objective
from edgekit.release.keys import PrivateKey
from edgekit_contract import limits
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import AudioPreprocess, ImagePreprocess, Postprocess, Preprocess
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.callables import is_callable_name
from edgekit_converters.sources import model_named

__all__ = [
    "FILENAME",
    "Project",
    "find_project",
    "load_project",
    "objective",
    "read_labels",
    "runtime_kind",
    "share",
    "slug",
    "stem_of",
]

FILENAME: Final = "edgekit.toml"
_VERSION: Final = "1.0.0"


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A build in the user's words; None and empty leave the choice to `BuildRequest`."""

    model: str | None = None
    name: str | None = None
    """Of the model; else that of its file."""
    version: str | None = None
    profiles: tuple[str, ...] = ()
    """Names, or paths of TOML files."""
    output: str | None = None
    key: str | None = None
    """File of the private key to sign with."""
    calibration: str | None = None
    validation: str | None = None
    metric: str | None = None
    """In the file also a table: `kind` is the metric, the rest its options."""
    metric_options: MetricOptions = DEFAULTS
    max_drop: float | None = None
    """In the file also as a text such as `1%`."""
    max_ms: float | None = None
    max_mb: float | None = None
    objective: Objective | None = None
    recipes: tuple[str, ...] = ()
    search_time_s: float | None = None
    conversion_time_s: float | None = None
    runtime: RuntimeKind | None = None
    """That the model is prebuilt for."""
    labels: str | None = None
    """File with the name of a class on each line."""
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None

    @property
    def about_model(self) -> Project:
        """Only what the file says of the model itself, and not of one build of it."""
        return Project(
            metric=self.metric,
            metric_options=self.metric_options,
            labels=self.labels,
            preprocess=self.preprocess,
            postprocess=self.postprocess,
        )

    def request(self, *, key: PrivateKey | None = None, dry_run: bool = False) -> BuildRequest:
        """The build that this describes. Errors: `Misused`."""
        if self.model is None:
            raise Misused(
                f"no model: name one (edgekit build MODEL), or describe the build in {FILENAME} "
                "(edgekit new)."
            )
        asked: dict[str, Any] = {
            name: value
            for name in _AS_THEY_ARE
            if (value := getattr(self, name)) is not None and value != ()
        }
        return BuildRequest(
            model=model_named(self.model),
            profiles=tuple(map(edgekit_profiles.load, self.profiles)),
            name=self.name if self.name is not None else slug(stem_of(self.model)),
            version=self.version if self.version is not None else _VERSION,
            output=Path(self.output or "."),
            key=key,
            preprocess=(self.preprocess,) if self.preprocess else (),
            postprocess=(self.postprocess,) if self.postprocess else (),
            labels=read_labels(Path(self.labels)) if self.labels is not None else (),
            dry_run=dry_run,
            **asked,
        )


_AS_THEY_ARE: Final = (
    "calibration validation metric metric_options max_drop max_ms max_mb objective recipes "
    "search_time_s conversion_time_s runtime".split()
)
"""Fields that `BuildRequest` takes without a change."""


def stem_of(model: str) -> str:
    """What a model is called after: its file, its directory, or the module of its callable."""
    if is_callable_name(model):
        return model.partition(":")[0].rpartition(".")[2]
    return Path(model).stem


def slug(stem: str) -> str:
    """A model name from a file's."""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64].strip("-") or "model"


def share(value: str) -> float:
    """`1%` or `0.01`. Errors: `Misused`."""
    try:
        return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError as error:
        raise Misused(
            f"max drop {value!r} is neither a share nor a percentage: write 0.01 or 1%."
        ) from error


def objective(value: str) -> Objective:
    """Errors: `Misused`."""
    try:
        return Objective(value)
    except ValueError as error:
        known = ", ".join(member.value for member in Objective)
        raise Misused(f"objective {value!r} is not one of {known}.") from error


def runtime_kind(value: str) -> RuntimeKind:
    """Errors: `Misused`."""
    try:
        return RuntimeKind(value)
    except ValueError as error:
        raise Misused(
            f"{value[:80]!r} is not the name of a runtime: say that of the plug-in, as the "
            "profile's [[runtimes]] kind does."
        ) from error


def find_project(places: Iterable[Path]) -> Path | None:
    """The first edgekit.toml in one of these directories."""
    files = (place / FILENAME for place in places)
    return next((file for file in files if file.is_file()), None)


def load_project(path: Path) -> Project:
    """Parse an edgekit.toml. Errors: `Misused` naming the file and what is wrong."""
    try:
        with path.open("rb") as stream:
            table = msgspec.toml.decode(stream.read(limits.MIB))
        _check_keys(table, "", _KEYS)
        project = msgspec.convert(_plain(table), Project)
    except OSError as error:
        raise Misused(f"cannot read {path}: {error.strerror}; check the path.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Misused(
            f"{path} cannot be used ({error}): correct it; docs/project.md has each key."
        ) from error
    except Misused as error:
        raise Misused(f"{path}: {error}") from error
    if project.postprocess is not None and project.labels is None:
        raise Misused(f"{path} has [postprocess] but names no labels: add labels = FILE.")
    return _relative_to(path.parent, project)


_KEYS: Final = tuple(name for name in Project.__struct_fields__ if name != "metric_options")
_TABLES: Final[dict[str, tuple[type[msgspec.Struct], ...]]] = {
    "preprocess": (ImagePreprocess, AudioPreprocess),
    "postprocess": (Postprocess,),
    "metric": (MetricOptions,),
    "metric.detection": (DetectionOptions,),
    "metric.ctc": (CtcOptions,),
}
"""What a table of the file may hold, by its `kind` where there are several."""


def _check_keys(table: dict[str, Any], where: str, known: Sequence[str]) -> None:
    for key, value in table.items():
        if key not in known:
            nearest = get_close_matches(key, known, 1, 0.0)[0]
            raise Misused(f"there is no key {where}{key[:80]}: did you mean {where}{nearest}?")
        for kind in _TABLES.get(where + key, ()):
            if isinstance(value, dict) and kind.__struct_config__.tag in (None, value.get("kind")):
                fields = kind.__struct_fields__
                _check_keys(value, f"{where}{key}.", ("kind", *fields))


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """With one spelling of each value."""
    words = {name: parse(table[name]) for name, parse in _WORDS.items() if _is_text(table, name)}
    if isinstance(metric := table.get("metric"), dict):
        options = {name: value for name, value in metric.items() if name != "kind"}
        words |= {"metric": metric.get("kind"), "metric_options": options}
    return {**table, **words}


def _is_text(table: dict[str, Any], name: str) -> bool:
    return isinstance(table.get(name), str)


_WORDS: Final[dict[str, Callable[[str], object]]] = {
    "max_drop": share,
    "objective": objective,
    "runtime": runtime_kind,
}
"""Keys whose text is a way to write another value."""


def _relative_to(directory: Path, project: Project) -> Project:
    def beside(name: str | None) -> str | None:
        return None if name is None else str(directory / name)

    def named(name: str | None) -> str | None:
        return name if name is not None and is_callable_name(name) else beside(name)

    return msgspec.structs.replace(
        project,
        model=named(project.model),
        output=beside(project.output or "."),
        key=beside(project.key),
        labels=beside(project.labels),
        calibration=named(project.calibration),
        validation=named(project.validation),
        profiles=tuple(
            str(directory / name) if "/" in name or name.endswith(".toml") else name
            for name in project.profiles
        ),
    )


def read_labels(path: Path) -> tuple[str, ...]:
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(limits.MIB)
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"cannot read the labels {path}: {error}.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
