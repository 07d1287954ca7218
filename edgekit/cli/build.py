"""`edgekit build`."""

from __future__ import annotations

import os
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.output import emit, json_option, remark, table
from edgekit.cli.progress import for_terminal
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.build import BuildResult

__all__ = ["build"]

E = TypeVar("E", bound=Enum)

_HEADERS = ("recipe", "metric", "MB", "ms", "to float32", "outcome")


def _share(_: click.Context, __: click.Parameter, value: str) -> float:
    """`1%` or `0.01`."""
    try:
        return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a share nor a percentage") from error


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--profile", "profiles", multiple=True, help="A kind of device; repeat for more.")
@click.option("--calibration", metavar="DATA", help="Samples to estimate int8 ranges from.")
@click.option("--validation", metavar="DATA", help="Samples to compare variants on.")
@click.option("--metric", default="auto", show_default=True, metavar="NAME",
              help="See docs/build.md, or package.module:callable.")  # fmt: skip
@click.option("--max-drop", default="1%", show_default=True, callback=_share, metavar="SHARE",
              help="Greatest loss of the metric against float32.")  # fmt: skip
@click.option("--max-ms", type=float, help="Greatest median latency.")
@click.option("--max-mb", type=float, help="Greatest size of the model file, in 10^6 bytes.")
@click.option("--objective", default="latency", show_default=True, help="latency, size, accuracy.")
@click.option("--recipe", "recipes", multiple=True, metavar="PATTERN",
              help="Try only these recipes, such as 'int8-static/*'.")  # fmt: skip
@click.option("--name", help="Name of the model; default: that of its file.")
@click.option("--version", "version", default="1.0.0", show_default=True)
@click.option("--key", type=click.Path(path_type=Path), help="Private key to sign with.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), metavar="DIR",
              help="Where bundles go; default: here.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_option
def build(
    *,
    model: Path,
    profiles: tuple[str, ...],
    calibration: str | None,
    validation: str | None,
    metric: str,
    max_drop: float,
    max_ms: float | None,
    max_mb: float | None,
    objective: str,
    recipes: tuple[str, ...],
    name: str | None,
    version: str,
    key: Path | None,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the best bundle of MODEL (.onnx or .tflite) for each profile.

    DATA is an .npz (one array per model input, first axis = samples; `labels` for top-1), a
    directory of .npz files, of images or of WAV files (with [preprocess] in edgekit.toml), or
    package.module:callable yielding dicts of arrays.
    """
    import edgekit_profiles
    from edgekit.build import BuildRequest, Objective
    from edgekit.build import build as run
    from edgekit.build.project import find_project
    from edgekit.release.keys import find_passphrase, open_key

    private = None
    if key is not None:
        ask = _ask if sys.stdin.isatty() else None
        private = open_key(
            key, lambda what: find_passphrase(what, environ=os.environ, ask=ask, warn=remark)
        )
    project = find_project(_places(validation, calibration))
    request = BuildRequest(
        model=model,
        profiles=tuple(map(edgekit_profiles.load, profiles)),
        name=name if name is not None else _slug(model.stem),
        version=version,
        output=output,
        calibration=calibration,
        validation=validation,
        metric=metric,
        max_drop=max_drop,
        max_ms=max_ms,
        max_mb=max_mb,
        objective=_choice(Objective, objective, "--objective"),
        recipes=recipes,
        key=private,
        preprocess=project.preprocess,
        postprocess=project.postprocess,
        labels=project.labels,
        dry_run=dry_run,
    )
    result = run(request, progress=for_terminal())
    if as_json:
        emit(_as_builtins(result))
    elif dry_run:
        _print_plan(result)
    else:
        _print_built(result)


def _choice(kind: type[E], value: str, flag: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(member.value for member in kind)
        raise Misused(f"{flag} {value!r} is not one of {known}.") from error


def _slug(stem: str) -> str:
    """A model name from a file's."""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64].strip("-") or "model"


def _places(*data: str | None) -> list[Path]:
    """Where edgekit.toml may be: in or beside the data, or here."""
    paths = [Path(name) for name in data if name is not None and Path(name).exists()]
    inside = [path for path in paths if path.is_dir()]
    return [*inside, *(path.resolve().parent for path in paths), Path.cwd()]


def _ask(prompt: str) -> str:
    return str(click.prompt(prompt, hide_input=True, default="", show_default=False, err=True))


def _as_builtins(result: BuildResult) -> dict[str, Any]:
    return {
        "plan": [
            {
                "profile": plan.profile.name,
                "runtime": plan.runtime,
                "recipes": [recipe.id for recipe in plan.recipes],
                "skipped": plan.skipped,
            }
            for plan in result.plan.profiles
        ],
        "bundles": [
            {
                "path": str(built.bundle.path),
                "size_bytes": built.bundle.size_bytes,
                "digest": built.bundle.digest,
                "signed": built.bundle.signed,
                "report": built.report,
            }
            for built in result.built
        ],
    }


def _print_plan(result: BuildResult) -> None:
    for plan in result.plan.profiles:
        runtime = plan.runtime
        click.echo(f"{plan.profile.name}: {runtime.kind.value} {runtime.version}, "
                   f"{runtime.threads} threads")  # fmt: skip
        rows = [[recipe.id, recipe.title] for recipe in plan.recipes]
        rows += [[skipped.recipe, f"not tried: {skipped.reason}"] for skipped in plan.skipped]
        table(("recipe", "plan"), rows)


def _print_built(result: BuildResult) -> None:
    from edgekit.build.report import table_rows

    for built in result.built:
        report, bundle = built.report, built.bundle
        click.echo(
            f"{report.profile}: {report.chosen}, by {report.objective.value} "
            f"({report.metric} on {report.validation_samples} samples, "
            f"measured on {'' if report.on_target else 'HOST '}{report.measured_on})"
        )
        table(_HEADERS, table_rows(report))
        for text in report.remarks:
            click.echo(f"note: {text}")
        click.echo(f"{bundle.path}  {bundle.size_bytes / 1e6:.3f} MB")
        if not bundle.signed:
            click.echo("note: the bundle is not signed, so edgekit verify refuses it: add --key.")
