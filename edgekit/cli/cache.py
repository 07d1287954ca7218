"""`edgekit cache`."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import click

from edgekit.cli.output import emit, json_option, table
from edgekit_contract import limits
from edgekit_contract.errors import Misused

if TYPE_CHECKING:
    from edgekit.build.cache import Cache

__all__ = ["cache"]

_DAY_S = 24 * 3600.0


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """Show what builds keep for each other, and where.

    EDGEKIT_CACHE names another directory, EDGEKIT_CACHE_MIB the greatest size (default: 4096; 0:
    nothing is kept).
    """
    if context.invoked_subcommand is not None:
        return
    kept = _cache()
    usages = kept.usage()
    total = sum(usage.size_bytes for usage in usages)
    if as_json:
        emit({
            "place": str(kept.root),
            "max_bytes": kept.max_bytes,
            "entries": sum(usage.entries for usage in usages),
            "size_bytes": total,
            "kinds": usages,
        })  # fmt: skip
        return
    click.echo(f"{kept.root}: {_mib(total)} of at most {_mib(kept.max_bytes)}")
    table(
        ("kind", "entries", "size"),
        [[usage.kind, str(usage.entries), _mib(usage.size_bytes)] for usage in usages],
    )


@cache.command()
@click.option("--max-mib", type=click.FloatRange(0), metavar="N",
              help="Drop what was used least recently, until so much is left.")  # fmt: skip
@click.option("--older-than", "older_than_days", type=click.FloatRange(0), metavar="DAYS",
              help="Drop what was not used for so long.")  # fmt: skip
@json_option
def prune(max_mib: float | None, older_than_days: float | None, as_json: bool) -> None:
    """Drop entries; without an option, until the cache is within its greatest size."""
    for flag, value in (("--max-mib", max_mib), ("--older-than", older_than_days)):
        if value is not None and not math.isfinite(value):
            raise Misused(f"{flag} {value}: give a number.")
    kept = _cache()
    most: int | None = None
    if max_mib is not None:
        most = int(max_mib * limits.MIB)
    elif older_than_days is None:
        most = kept.max_bytes
    older = None if older_than_days is None else older_than_days * _DAY_S
    _tell(kept, kept.prune(max_bytes=most, older_than_s=older), as_json=as_json)


@cache.command()
@json_option
def clear(as_json: bool) -> None:
    """Drop all entries."""
    kept = _cache()
    try:
        gone = kept.clear()
    except OSError as error:
        raise Misused(f"cannot empty {kept.root}: {error.strerror}; check whose it is.") from error
    _tell(kept, gone, as_json=as_json)


def _cache() -> Cache:
    from edgekit.build.cache import find_cache

    found = find_cache(os.environ)
    if found is None:
        raise Misused(
            "EDGEKIT_CACHE_MIB is 0, so nothing is kept: unset it, or give a number of MiB."
        )
    return found


def _tell(kept: Cache, gone: int, *, as_json: bool) -> None:
    left = sum(usage.size_bytes for usage in kept.usage())
    if as_json:
        emit({"place": str(kept.root), "dropped": gone, "size_bytes": left})
    else:
        click.echo(f"{gone} dropped, {_mib(left)} left in {kept.root}.")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / limits.MIB:.1f} MiB"
