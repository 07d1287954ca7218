"""The `edgekit` command. Parse, call, print: the only place that maps errors to exit codes.

A command's module is imported when the command is used, so that `edgekit --help` is instant and a
command needs only its own libraries.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

COMMANDS = {
    "bench": "edgekit.cli.bench:bench",
    "build": "edgekit.cli.build:build",
    "cache": "edgekit.cli.cache:cache",
    "demo": "edgekit.cli.demo:demo",
    "devices": "edgekit.cli.devices:devices",
    "emulation": "edgekit.cli.emulation:emulation",
    "environments": "edgekit.cli.environments:environments",
    "fleet": "edgekit.cli.fleet:fleet",
    "hub": "edgekit.cli.hub:hub",
    "inspect": "edgekit.cli.bundles:inspect",
    "keys": "edgekit.cli.keys:keys",
    "new": "edgekit.cli.new:new",
    "profiles": "edgekit.cli.profiles:profiles",
    "release": "edgekit.cli.release:release",
    "report": "edgekit.cli.report:report",
    "rollout": "edgekit.cli.rollout:rollout",
    "verify": "edgekit.cli.bundles:verify",
}
"""Command to the `module:attribute` that holds it."""

HELP = {
    "bench": "Measure how long bundles and models take.",
    "build": "Make the best bundle of a model for each profile.",
    "cache": "Show and empty what builds keep for each other.",
    "demo": "Watch a small fleet take releases, refuse a bad one and roll one back.",
    "devices": "Invite and list devices.",
    "emulation": "Make what emulates the CPUs of devices.",
    "environments": "List and set up the tools that live in environments of their own.",
    "fleet": "Make a fleet: its authorities, repository and broker configuration.",
    "hub": "Run the hub of a fleet, with its dashboard.",
    "inspect": "Show what a bundle says of itself, without trusting it.",
    "keys": "Make and show signing keys.",
    "new": "Describe a build in edgekit.toml, by asking.",
    "profiles": "List, show, make and check the kinds of device.",
    "release": "Publish bundles to a fleet.",
    "report": "Tell how a bundle was chosen, as Markdown, HTML or JSON.",
    "rollout": "Move a fleet to a release.",
    "verify": "Prove a bundle's signature, files and golden vectors.",
}


def main() -> None:
    """Entry point of the console script."""
    try:
        import click  # noqa: F401
    except ImportError:
        sys.exit("edgekit: the command line needs the host packages: pip install 'edgekit[host]'.")
    from edgekit.cli.group import run

    run(COMMANDS, HELP)
