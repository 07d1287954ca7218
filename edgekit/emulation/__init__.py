"""Run a bundle on its profile's own CPU, emulated, before a device has to.

sysroot = set_up(profile)              # once, by apt and pip, into the cache
self_test(profile, sysroot)            # the whole agent, from its wheel
emulate_file(path, keys, profile)      # a bundle's golden vectors
"""

from edgekit.emulation.emulator import Emulator
from edgekit.emulation.sysroot import (
    CannotEmulate,
    NotSetUp,
    Sysroot,
    obstacle,
    set_up,
    sysroot_of,
)
from edgekit.emulation.trial import (
    Emulated,
    EmulationFailed,
    SelfTest,
    emulate,
    emulate_file,
    self_test,
)

__all__ = [
    "CannotEmulate",
    "Emulated",
    "EmulationFailed",
    "Emulator",
    "NotSetUp",
    "SelfTest",
    "Sysroot",
    "emulate",
    "emulate_file",
    "obstacle",
    "self_test",
    "set_up",
    "sysroot_of",
]
