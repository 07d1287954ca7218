"""`edgekit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.build.rendering.figures import device_text
from edgekit.cli.output import emit, json_option, remark, table
from edgekit_contract import limits
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.measure.here import Measured

__all__ = ["bench"]


@click.command()
@click.argument("subjects", metavar="BUNDLE|MODEL...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--profile", metavar="NAME",
              help="Say, too, what is estimated for this kind of device.")  # fmt: skip
@click.option("--seconds", "budget_s", type=float, default=5.0, show_default=True,
              help="How long to run each.")  # fmt: skip
@click.option("--device", metavar="ID",
              help="Have this device of a fleet measure them, and keep the figures.")  # fmt: skip
@click.option("--fleet", "directory", type=click.Path(path_type=Path), envvar="EDGEKIT_FLEET",
              help="The fleet directory, with --device; default: $EDGEKIT_FLEET.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path),
              help="The targets key, with --device; default: that of the fleet.")  # fmt: skip
@json_option
def bench(
    subjects: tuple[Path, ...],
    *,
    profile: str | None,
    budget_s: float,
    device: str | None,
    directory: Path | None,
    key: Path | None,
    as_json: bool,
) -> int:
    """Measure how long an inference of each BUNDLE or MODEL takes, here or on a device.

    A bundle runs on its golden inputs, a model (.onnx, .tflite) on made-up ones. With --device
    bundles are signed for that alone, a running hub asks the device, and later builds use what it
    found in place of estimates.
    """
    if not 0 < budget_s <= limits.MAX_BENCH_S:
        raise Misused(
            f"--seconds {budget_s:g}: give more than 0, and at most {limits.MAX_BENCH_S:g}."
        )
    if device is not None:
        return _on_device(
            subjects, device, directory=directory, key=key, budget_s=budget_s, as_json=as_json
        )
    import edgekit_profiles
    from edgekit.measure.here import measure_here

    known = edgekit_profiles.load(profile) if profile is not None else None
    found = [measure_here(path, profile=known, budget_s=budget_s) for path in subjects]
    if as_json:
        emit({"measured": found})
    else:
        _print_here(found)
    return 0


def _on_device(
    bundles: tuple[Path, ...],
    device: str,
    *,
    directory: Path | None,
    key: Path | None,
    budget_s: float,
    as_json: bool,
) -> int:
    if directory is None:
        raise Misused("--device needs --fleet DIR, or EDGEKIT_FLEET.")
    from edgekit.build.notebook import Notebook, default_path
    from edgekit.cli.devices import opened
    from edgekit.cli.passphrase import unlock
    from edgekit.measure.fleet import measure_on_device

    notebook = Notebook(default_path())
    with opened(directory) as (fleet, store):
        found = measure_on_device(
            bundles,
            fleet=fleet,
            store=store,
            device=device,
            key=unlock(key or fleet.tuf_targets_key),
            budget_s=budget_s,
            notebook=notebook,
            say=remark,
        )
    kept = any(one.figure for one in found)
    if as_json:
        emit({"measured": found, "figures": str(notebook.path) if kept else None})
    else:
        rows = [
            [one.bundle, one.runtime, device_text(one.estimate, one.figure), one.reason]
            for one in found
        ]
        table(["", "runtime", f"ms on {device}", ""], rows)
        if kept:
            remark(f"Kept in {notebook.path}: later builds use it in place of estimates.")
    return 0 if all(one.figure for one in found) else 1


def _print_here(found: list[Measured]) -> None:
    profile = found[0].profile
    headers = ["", "ms", "95% interval", "p95 ms", "MiB", "runs", "runtime", "threads"]
    rows = []
    for one in found:
        timing, guess = one.timing, one.estimate
        row = [
            one.title,
            f"{timing.median_ms:.3f}",
            f"{timing.low_ms:.3f} to {timing.high_ms:.3f}",
            f"{timing.p95_ms:.3f}",
            f"{one.rss_bytes / 2**20:.0f}",
            str(timing.runs),
            one.runtime,
            str(one.threads),
        ]
        if profile is not None:
            row.append(device_text(guess, None) or "unknown")
        rows.append(row)
    if profile is not None:
        headers.append(f"{profile} ms, estimated")
    table(headers, rows)
    click.echo(f"measured on {found[0].machine}")
    if any(one.inputs == "made-up" for one in found):
        remark("A model ran on made-up inputs; a bundle has golden ones.")
