"""`edgekit emulation setup`."""

from __future__ import annotations

import click

import edgekit_profiles
from edgekit.cli.output import emit, json_option, remark, table
from edgekit_contract.errors import Refused

__all__ = ["emulation"]


@click.group()
def emulation() -> None:
    """Prepare to run bundles on the CPU of their profile, emulated."""


@emulation.command()
@click.option("--profile", "names", multiple=True,
              help="A kind of device; repeat for more. Default: all that can be.")  # fmt: skip
@json_option
def setup(names: tuple[str, ...], as_json: bool) -> None:
    """Make the sysroots of profiles, by apt and pip, and test the agent in each.

    What was made before is kept; the cache is in $EDGEKIT_CACHE, by default ~/.cache/edgekit.
    """
    from edgekit.emulation import obstacle, self_test, set_up

    profiles = [edgekit_profiles.load(name) for name in names or edgekit_profiles.names()]
    if not names:
        profiles = [profile for profile in profiles if obstacle(profile) is None]
    made = []
    for profile in profiles:
        sysroot = set_up(profile, say=lambda what: remark(f"{what} ..."))
        remark(f"{profile.name}: the agent's self-test ...")
        made.append((profile, sysroot, self_test(profile, sysroot)))
    if as_json:
        emit(
            {
                "sysroots": [
                    {
                        "profile": profile.name,
                        "suite": sysroot.suite.name,
                        "python": sysroot.suite.python,
                        "layers": sysroot.layers,
                        "core": tested.core,
                        "seconds": tested.seconds,
                        "checks": tested.checks,
                    }
                    for profile, sysroot, tested in made
                ]
            }
        )
    else:
        table(
            ("PROFILE", "CPU", "SYSROOT", "RUNTIMES", "SELF-TEST"),
            [
                (
                    profile.name,
                    tested.core,
                    f"Debian {sysroot.suite.name}, Python {sysroot.suite.python}",
                    ", ".join(f"{r.kind.value} {r.version}" for r in profile.runtimes),
                    "FAILED" if tested.failed else f"passed, {len(tested.checks)} checks",
                )
                for profile, sysroot, tested in made
            ],
        )
    for profile, _, tested in made:
        for check in tested.failed:
            raise Refused(
                f"the agent does not work on {profile.name} (an emulated {tested.core}): "
                f"{check.name}: {check.detail.rstrip('.')}; name another version of the runtime "
                "in the profile."
            )
