"""Sysroots: which layers a profile's device is made of, finding and making them.

Invariant: profiles with the same Python and the same runtimes share every layer; the profile's CPU
is not in a sysroot, it is given to each run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from edgekit.build.host import read_host
from edgekit.emulation import debian, wheels
from edgekit.emulation.debian import Suite
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Arch, Platform, Profile, RuntimeKind

__all__ = ["CannotEmulate", "NotSetUp", "Sysroot", "obstacle", "planned", "set_up", "sysroot_of"]


class CannotEmulate(Refused):
    """No sysroot can stand for the devices of this profile."""

    def __init__(self, profile: Profile, why: str) -> None:
        super().__init__(f"{profile.name} cannot be emulated: {why}.")
        self.profile, self.why = profile, why


class NotSetUp(Misused):
    """A profile's sysroot, or a part of it, was not made yet."""

    def __init__(self, profile: Profile, missing: Path) -> None:
        super().__init__(
            f"{profile.name} has no sysroot of this edgekit yet: run edgekit emulation setup "
            f"--profile {profile.name} (or the profile's file)."
        )
        self.profile, self.missing = profile, missing


@dataclass(frozen=True, kw_only=True)
class Sysroot:
    """A device of a profile, less its CPU."""

    suite: Suite
    base: Path
    """Debian's packages; this and the next are directories of the cache."""
    wheels: Path
    own: Path

    @property
    def layers(self) -> tuple[Path, ...]:
        return self.base, self.wheels, self.own


_OTHER_ARCHES: Final = {
    Arch.ARMV7: "there is no wheel of onnxruntime or ai-edge-litert for armv7l",
    Arch.X86_64: "only aarch64 is; run edgekit verify without --emulate on an x86-64 machine",
}


def obstacle(profile: Profile, runtime: RuntimeKind | None = None) -> str | None:
    """Why a profile, or its bundles for one of its runtimes, cannot be emulated, anywhere; None
    where they can be."""
    kinds = [runtime] if runtime is not None else [r.kind for r in profile.runtimes]
    if all(kind.is_plugin for kind in kinds):
        named = " and ".join(kind.value for kind in kinds)
        return (
            f"its models run in a vendor's {named}, which no emulated system has; let a device try "
            "the bundle, in its warm-up"
        )
    arch = profile.cpu.arch
    if arch is Arch.X86_64 and read_host().arch == arch.value:
        return "it need not be, this machine is x86_64 itself and runs the golden vectors as it is"
    if arch is not Arch.AARCH64:
        return _OTHER_ARCHES[arch]
    if profile.platform is not Platform.LINUX:
        return f"no wheels are made for {profile.platform.value}"
    return None


def sysroot_of(profile: Profile, runtime: RuntimeKind | None = None) -> Sysroot:
    """The sysroot as it was made, for bundles of `runtime`, if given.

    Errors: `CannotEmulate`, `NotSetUp`.
    """
    plan = planned(profile, runtime)
    for part in plan.layers:
        if not part.is_dir():
            raise NotSetUp(profile, part)
    return plan


def set_up(profile: Profile, *, say: Callable[[str], None] = lambda _: None) -> Sysroot:
    """Make what is missing of a profile's sysroot; `say` hears what is about to take long.

    Errors: `CannotEmulate`; `Misused` for a program that is missing, `Refused` for a download that
    failed.
    """
    plan = planned(profile)
    suite, runtimes = plan.suite, profile.runtimes
    steps: tuple[tuple[Path, str, Callable[[], object]], ...] = (
        (plan.base, f"Debian {suite.name}, arm64", partial(debian.make_base, suite)),
        (
            plan.wheels,
            " and ".join(f"{r.kind.value} {r.version}" for r in runtimes),
            partial(wheels.make_wheels, suite, runtimes),
        ),
        (plan.own, "edgekit's own wheel", partial(wheels.make_own, suite)),
    )
    with ThreadPoolExecutor() as pool:  # they wait for the network
        making = []
        for part, title, make in steps:
            if not part.is_dir():
                say(title)
                making.append(pool.submit(make))
        for made in making:
            made.result()
    return plan


def planned(profile: Profile, runtime: RuntimeKind | None = None) -> Sysroot:
    """The sysroot as it is or would be. Errors: `CannotEmulate`."""
    if (why := obstacle(profile, runtime)) is not None:
        raise CannotEmulate(profile, why)
    suite = debian.suite_for(profile.runtimes[0].python)
    return Sysroot(
        suite=suite,
        base=debian.base_layer(suite),
        wheels=wheels.wheels_layer(suite, profile.runtimes),
        own=wheels.own_layer(),
    )
