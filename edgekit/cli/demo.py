"""`edgekit demo`."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import click

from edgekit.cli.output import emit, json_option, remark, table
from edgekit.demo.broker import BrokerKind
from edgekit.demo.devices import DEVICES
from edgekit.demo.story import DemoResult, run_demo


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option(
    "--broker",
    type=click.Choice([kind.value for kind in BrokerKind]),
    default=BrokerKind.AUTO.value,
    show_default=True,
    help="auto: mosquitto where it is installed, else iotcore.",
)
@json_option
def demo(keep: bool, broker: str, as_json: bool) -> None:
    """Watch a small fleet take releases, refuse a bad one and roll one back.

    A broker, a hub and three agents run on this machine, below one temporary directory that is
    removed in the end.
    """
    tell = remark if as_json else click.echo
    began = time.monotonic()

    def stamped(line: str) -> None:
        tell(f"{time.monotonic() - began:5.1f} s  {line}" if line else "")

    def linger(result: DemoResult) -> None:
        if keep:
            _print(result, as_json=as_json)
            tell(f"Everything runs on: {result.dashboard} (files in {result.directory}).")
            tell("Ctrl-C ends it.")
            _until_interrupted()

    directory = Path(tempfile.mkdtemp(prefix="edgekit-demo-"))
    try:
        result = run_demo(directory, stamped, broker=BrokerKind(broker), linger=linger)
    except BaseException:
        remark(f"Files and logs of this run are left in {directory}.")
        raise
    shutil.rmtree(directory, ignore_errors=True)
    if not keep:
        _print(result, as_json=as_json)


def _until_interrupted() -> None:
    """Wait until Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass


def _print(result: DemoResult, *, as_json: bool) -> None:
    if as_json:
        emit(result)
        return
    click.echo("")
    table(
        ("release", "what it is", *DEVICES, "answered", "failed", "seconds"),
        [
            (
                chapter.version,
                chapter.about,
                *(f"{chapter.endings[d]} in {chapter.phases[d]}" for d in DEVICES),
                str(chapter.served),
                str(chapter.failed),
                f"{chapter.seconds:.0f}",
            )
            for chapter in result.chapters
        ],
    )
    click.echo("")
    click.echo(
        f"{result.accuracy:.1%} of the live answers were right. "
        f"Dashboard: {result.dashboard}. {result.seconds:.0f} s in all."
    )
