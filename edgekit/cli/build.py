"""`edgekit build`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit.cli.output import emit, json_option, remark, table
from edgekit.cli.progress import for_terminal
from edgekit.cli.report import check_place, format_of, write_report
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.build import BuildRequest, BuildResult, Built
    from edgekit.build.project import Project
    from edgekit.emulation import Emulated, Emulator
    from edgekit.release.keys import PrivateKey

__all__ = ["build"]


@click.command()
@click.argument("model", required=False)
@click.option("--profile", "profiles", multiple=True, help="A kind of device; repeat for more.")
@click.option("--calibration", metavar="DATA", help="Samples to estimate int8 ranges from.")
@click.option("--validation", metavar="DATA", help="Samples to compare variants on.")
@click.option("--metric", metavar="NAME", help="See docs/build.md, or package.module:callable; "
              "default: by the data and the model's outputs.")  # fmt: skip
@click.option("--max-drop", metavar="SHARE",
              help="Greatest loss of the metric against float32; default: 1%.")  # fmt: skip
@click.option("--max-ms", type=float, help="Greatest median latency.")
@click.option("--max-mb", type=float, help="Greatest size of the model file, in 10^6 bytes.")
@click.option("--objective", help="latency (default), size or accuracy.")
@click.option("--recipe", "recipes", multiple=True, metavar="PATTERN",
              help="Try only these recipes, such as 'int8-static/*'.")  # fmt: skip
@click.option("--search-time", "search_time_s", type=float, metavar="SECONDS",
              help="About how long a build may take; default: 60.")  # fmt: skip
@click.option("--conversion-time", "conversion_time_s", type=float, metavar="SECONDS",
              help="How long converting a model of another framework may take; default: "
              "50.")  # fmt: skip
@click.option("--runtime", metavar="NAME",
              help="MODEL is prebuilt for this runtime plug-in: pack it as it is.")  # fmt: skip
@click.option("--name", help="Name of the model; default: that of its file.")
@click.option("--version", help="Default: 1.0.0.")
@click.option("--key", metavar="FILE", help="Private key to sign with.")
@click.option("-o", "--output", metavar="DIR", help="Where bundles go; default: here.")
@click.option("--report", "report_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the report, too: .html, .md or .json; of several profiles, one "
              "FILE each.")  # fmt: skip
@click.option("--emulate", is_flag=True,
              help="Try each bundle on its profile's CPU before any is written.")  # fmt: skip
@click.option("--contenders", is_flag=True,
              help="Pack, too, what a measurement might choose (edgekit bench).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_option
def build(
    *,
    model: str | None,
    report_file: Path | None,
    emulate: bool,
    contenders: bool,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make the best bundle of MODEL for each profile.

    MODEL is an .onnx or .tflite file; a model of PyTorch, scikit-learn, XGBoost, LightGBM or
    Hugging Face (docs/sources.md: a file, a directory, or package.module:callable); what a vendor's
    tool made for a runtime plug-in (docs/runtimes.md); or an edgekit.toml. Without it the
    edgekit.toml here describes the build, and options change it.

    DATA is an .npz (one array per model input, first axis = samples; `labels` for top-1), a
    directory of .npz files, of images or of WAV files (with [preprocess] in edgekit.toml), or
    package.module:callable yielding dicts of arrays.
    """
    from edgekit.build import build as run
    from edgekit.build.project import objective, runtime_kind, share

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    for name, parse in (
        ("max_drop", share),
        ("objective", objective),
        ("runtime", runtime_kind),
    ):
        if name in given:
            given[name] = parse(given[name])
    project = msgspec.structs.replace(
        _describe(model, [given.get("validation"), given.get("calibration")]), **given
    )
    if report_file is not None:
        # said before an hour of work, not after it
        format_of(report_file)
        output = Path(project.output or ".")
        if output.is_dir() or report_file.parent.absolute() != output.absolute():
            check_place(report_file)
    signs = project.key is not None and not dry_run
    request = project.request(
        key=_open_key(Path(str(project.key))) if signs else None, dry_run=dry_run
    )
    emulator = _emulator(request) if emulate and not dry_run else None
    result = run(
        dataclasses.replace(request, contenders=contenders),
        progress=for_terminal(),
        gate=None if emulator is None else emulator.try_bundle,
    )
    if report_file is not None:
        for built in result.built:
            write_report(built.bundle.path, _report_path(report_file, built, result))
    if as_json:
        tried = {} if emulator is None else {"emulated": emulator.emulated}
        emit(_as_builtins(result) | tried)
    elif dry_run:
        _print_plan(result)
    else:
        _print_built(result, () if emulator is None else emulator.emulated)


def _emulator(request: BuildRequest) -> Emulator:
    """What is missing is said before an hour of work, not after it."""
    from edgekit.emulation import Emulator

    emulator = Emulator(request.profiles)
    for profile, why in emulator.left_out.items():
        remark(f"{profile} is not emulated: {why}.")
    return emulator


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


def _report_path(path: Path, built: Built, result: BuildResult) -> Path:
    if len(result.built) == 1:
        return path
    return path.with_stem(f"{path.stem}-{built.report.profile}")


def _as_builtins(result: BuildResult) -> dict[str, Any]:
    from edgekit.build.rendering.table import frontier_titles

    return {
        "plan": [
            {
                "profile": plan.profile.name,
                "runtimes": plan.runtimes,
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
                "contenders": [str(packed.path) for packed in built.contenders],
                "frontier": frontier_titles(built.report),
                "report": built.report,
            }
            for built in result.built
        ],
    }


def _print_plan(result: BuildResult) -> None:
    for plan in result.plan.profiles:
        told = [f"{r.kind.value} {r.version}, {r.threads} threads" for r in plan.runtimes]
        click.echo(f"{plan.profile.name}: {'; '.join(told)}")
        rows = [[recipe.id, recipe.title] for recipe in plan.recipes]
        rows += [[skipped.recipe, f"not tried: {skipped.reason}"] for skipped in plan.skipped]
        table(("recipe", "plan"), rows)


def _print_built(result: BuildResult, emulated: Sequence[Emulated]) -> None:
    from edgekit.build.rendering.figures import measured_text
    from edgekit.build.rendering.table import frontier_line, headers, held_out_line, table_rows

    for built in result.built:
        report, bundle = built.report, built.bundle
        click.echo(
            f"{report.profile}: {report.chosen}, by {report.objective.value} "
            f"({measured_text(report)})"
        )
        table(headers(report), table_rows(report))
        notes = (f"note: {text}" for text in report.remarks)
        for text in (held_out_line(report), frontier_line(report), *notes):
            if text:
                click.echo(text)
        for tried in emulated:
            if tried.profile == report.profile:
                click.echo(f"emulated: {tried}")
        click.echo(f"{bundle.path}  {bundle.size_bytes / 1e6:.3f} MB")
        for packed in built.contenders:
            click.echo(f"{packed.path}  {packed.size_bytes / 1e6:.3f} MB, to be measured beside it")
        if not bundle.signed:
            click.echo("note: the bundle is not signed, so edgekit verify refuses it: add --key.")
