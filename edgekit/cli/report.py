"""`edgekit report`."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli.output import json_option, remark
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.build.rendering import Format

__all__ = ["check_place", "format_of", "report", "write_report"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--format", "kind", metavar="FORMAT",
              help="md (default), html or json; with -o by the name of FILE.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where it goes; default: stdout.")  # fmt: skip
@json_option
def report(bundle: Path, kind: str | None, output: Path | None, as_json: bool) -> None:
    """Tell how BUNDLE was chosen: candidates, plot, sensitive nodes, errors, sizes, provenance.

    Nothing of the bundle is verified; `edgekit verify` does that.
    """
    from edgekit.build.rendering import Format, open_subject, render

    if as_json:
        kind = Format.JSON.value
    chosen = _format(kind) if kind is not None else None
    if output is not None:
        write_report(bundle, output, chosen)
    else:
        click.echo(render(open_subject(bundle), chosen or Format.MD), nl=False)
    remark("not verified: this is what the bundle says; `edgekit verify` proves it.")


def check_place(output: Path) -> None:
    """Prove that a report can be written there, before there is one. Errors: `Misused`."""
    from edgekit.release.storage import write_temporary

    try:
        if output.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        write_temporary(output, lambda stream: None).unlink()
    except OSError as error:
        raise _cannot_write(output, error) from error


def _cannot_write(output: Path, error: OSError) -> Misused:
    return Misused(f"cannot write {output}: {error.strerror}; choose another place for it.")


def write_report(bundle: Path, output: Path, kind: Format | None = None) -> None:
    """Write a bundle's report, in the format that the name asks for. Errors: `Misused`."""
    from edgekit.build.rendering import open_subject, render
    from edgekit.release.storage import write_file

    text = render(open_subject(bundle), kind or format_of(output))
    try:
        write_file(output, text.encode())
    except OSError as error:
        raise _cannot_write(output, error) from error


def format_of(path: Path) -> Format:
    """The format that a file's name asks for. Errors: `Misused`."""
    return _format(path.suffix.removeprefix(".") or path.name)


def _format(name: str) -> Format:
    from edgekit.build.rendering import Format

    try:
        return Format(name.lower())
    except ValueError as error:
        known = ", ".join(kind.value for kind in Format)
        raise Misused(f"{name!r} is no format of a report: use one of {known}.") from error
