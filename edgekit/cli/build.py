"""`edgekit build`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli.cases import Cases, Done
from edgekit.cli.output import emit, json_option, table
from edgekit.cli.report import format_of, write_report
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.build import BuildResult
    from edgekit.emulation import Emulated

__all__ = ["build"]


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
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
@click.option("--jobs", type=click.IntRange(1, 256), default=1,
              help="How many models at a time, in processes of their own; default: 1.")  # fmt: skip
@click.option("--executor", metavar="URL",
              help="Where models are built: dask://HOST:PORT, or see docs/many.md.")  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Build anew, and keep nothing for the next build.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_option
def build(
    *,
    models: tuple[str, ...],
    report_file: Path | None,
    emulate: bool,
    contenders: bool,
    jobs: int,
    executor: str | None,
    no_cache: bool,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make the best bundle of each MODEL for each profile.

    MODEL is an .onnx or .tflite file; a model of PyTorch, TensorFlow, scikit-learn, boosting or
    Hugging Face (docs/sources.md: a file, a directory, or package.module:callable); what a vendor's
    tool made for a runtime plug-in (docs/runtimes.md); or an edgekit.toml. Without it the
    edgekit.toml here describes the build, and options change it. Of several, one that fails does
    not stop the others.

    DATA is an .npz (one array per model input, first axis = samples; `labels` for top-1), a
    directory of .npz files, of images or of WAV files (with [preprocess] in edgekit.toml), or
    package.module:callable yielding dicts of arrays.
    """
    from edgekit.build import build_all, find_cache

    if executor is not None and jobs > 1:
        raise Misused("--jobs and --executor both say where models are built: give one of them.")
    if report_file is not None:
        format_of(report_file)  # said before an hour of work, not after it
    given = _given(models, flags)
    cases = Cases(models or (None,), given, contenders=contenders, dry_run=dry_run)
    if report_file is not None:
        cases.check_place(report_file)
    if emulate and not dry_run:
        cases.open_emulators()
    if executor is None and min(jobs, len(cases.requests)) > 1:
        executor = f"process://{min(jobs, len(cases.requests))}"
    cases.take(
        build_all(
            cases.requests,
            executor=executor,
            cache=None if no_cache else find_cache(os.environ),
            progress=cases.progress(apart=executor is not None),
            gate=cases.gate,
            told=cases.tell,
        )
    )
    if report_file is not None:
        for built in (built for end in cases.done for built in end.result.built):
            write_report(built.bundle.path, cases.report_path(report_file, built))
    if as_json:
        emit(cases.as_builtins(_as_builtins))
    else:
        for end in cases.done:
            _print(end, dry_run=dry_run)
    cases.exit()


def _given(models: Sequence[str], flags: dict[str, Any]) -> dict[str, Any]:
    """The options that were typed, parsed. Errors: `Misused`."""
    from edgekit.build.project import objective, runtime_kind, share

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    for name, parse in (
        ("max_drop", share),
        ("objective", objective),
        ("runtime", runtime_kind),
    ):
        if name in given:
            given[name] = parse(given[name])
    if len(models) > 1 and "name" in given:
        raise Misused(
            f"--name names one model, and there are {len(models)}: leave it out, or describe each "
            "in an edgekit.toml."
        )
    return given


def _print(end: Done, *, dry_run: bool) -> None:
    if dry_run:
        _print_plan(end.result)
    else:
        _print_built(end.result, end.emulated)


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
                "built_at": built.built_at,
                "cached": built.cached,
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
        if built.cached:
            click.echo(f"from the cache, built on {built.built_at}; --no-cache builds anew.")
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
