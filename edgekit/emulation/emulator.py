"""What `edgekit build --emulate` tries its bundles with, ready before the build begins.

Invariant: every profile is either emulated or left out for a reason that is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.emulation.machine import find_qemu
from edgekit.emulation.sysroot import CannotEmulate, obstacle, sysroot_of
from edgekit.emulation.trial import Emulated, emulate
from edgekit_contract.profile import Profile, RuntimeKind

if TYPE_CHECKING:
    from edgekit.build.pack import Sealed

__all__ = ["Emulator"]


class Emulator:
    """Sysroots for the profiles of a build.

    `runtime` is that of a prebuilt model. Errors: `CannotEmulate` where no profile can be,
    `NotSetUp`, `Misused` where qemu is missing.
    """

    def __init__(self, profiles: Sequence[Profile], runtime: RuntimeKind | None = None) -> None:
        told = {profile.name: obstacle(profile, runtime) for profile in profiles}
        self.left_out = {name: why for name, why in told.items() if why is not None}
        """Why a profile cannot be emulated, by its name."""
        self.emulated: list[Emulated] = []
        """By what was tried, in order."""
        if len(self.left_out) == len(profiles):
            raise CannotEmulate(profiles[0], self.left_out[profiles[0].name])
        find_qemu()
        self._sysroots = {
            profile.name: sysroot_of(profile)
            for profile in profiles
            if profile.name not in self.left_out
        }

    def try_bundle(self, profile: Profile, sealed: Sealed) -> None:
        """A `gate.Gate`. Errors: as `emulate`."""
        if (sysroot := self._sysroots.get(profile.name)) is not None:
            self.emulated.append(emulate(sealed, profile, sysroot))
