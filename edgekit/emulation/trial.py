"""A bundle under its profile's CPU: the device's own warm-up, run by the sysroot's agent.

Invariant: only a bundle whose every file matched the envelope is run; what is emulated is what a
device would do before its SWITCH, in the runtime version that the profile names.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgekit.emulation.machine import Machine
from edgekit.emulation.sysroot import CannotEmulate, Sysroot, obstacle, sysroot_of
from edgekit_contract import envelope, limits
from edgekit_contract.compatibility import unmet
from edgekit_contract.errors import Incompatible, Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import DeviceFacts, Execution
from edgekit_contract.profile import Profile
from edgekit_contract.trust import PublicKey, verify_archive
from edgekit_converters.isolation import Limits

if TYPE_CHECKING:
    from edgekit.build.pack import Sealed

__all__ = [
    "Check",
    "Emulated",
    "EmulationFailed",
    "SelfTest",
    "emulate",
    "emulate_file",
    "self_test",
]

_TIMEOUT_S: Final = 600.0
"""Emulation takes some twenty times as long as the machine that emulates."""
_SECONDS_PER_MIB: Final = 20.0
"""Of the bundle: a larger one computes more."""
_MOST_RSS_BYTES: Final = 3 * limits.GIB
"""And a dozen times the bundle. The warm-up watches it and says so."""
_BACKSTOP: Final = 2
"""Times that is what the kernel allows: an emulator that gets no memory hangs and says nothing."""
_SELF_TEST: Final = Limits(timeout_s=_TIMEOUT_S, memory_bytes=_BACKSTOP * _MOST_RSS_BYTES)


class EmulationFailed(Refused):
    """The bundle does not do on its profile's CPU what it did at build."""

    def __init__(self, manifest: Manifest, where: str, why: str) -> None:
        super().__init__(
            f"{manifest.title} fails on a {where}: {why.rstrip('.')}; build it with another "
            "--recipe, or name another version of the runtime in the profile."
        )
        self.manifest, self.why = manifest, why


@dataclass(frozen=True, kw_only=True)
class Emulated:
    """A bundle that does under its profile's CPU what it did at build."""

    profile: str
    core: str
    """qemu's name of the CPU."""
    runtime: str
    """Kind and version."""
    vectors: int
    """Golden vectors that were reproduced."""
    execution: Execution
    """What of the device computed them: a wheel may lack what the profile asks for."""
    seconds: float
    """Of emulation, from start to end. Says nothing of the device's speed."""
    cpu_s: float
    """Processor time of the same."""

    def __str__(self) -> str:
        said = f"{self.vectors} golden vectors reproduced in {self.runtime} on a {self.core}"
        if missed := self.execution.missed:
            said += f", without {' or '.join(missed)}"
        return said


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's warm-up prints (`edgekit_agent.control.WarmupReport`)."""

    passed: bool
    reason: str = ""
    execution: Execution | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the agent's self-test."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    core: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


def emulate(sealed: Sealed, profile: Profile, sysroot: Sysroot) -> Emulated:
    """Run a bundle that was just sealed. Errors: as `emulate_file`."""
    manifest = envelope.decode(sealed.envelope).manifest
    if (why := obstacle(profile, manifest.runtime)) is not None:
        raise CannotEmulate(profile, why)
    pieces = {
        path: [source] if isinstance(source, bytes) else source for path, source in sealed.members
    }
    digest = hashlib.sha256(sealed.envelope).hexdigest()
    return _emulate(manifest, digest, pieces, profile, sysroot)


def emulate_file(path: Path, keys: Sequence[PublicKey], profile: Profile) -> Emulated:
    """Verify a bundle file and run it on its profile's CPU.

    Errors: `BundleRejected`, `Incompatible` with the profile, `EmulationFailed`, `CannotEmulate`;
    `isolation.StepFailed` for one that hangs; `Misused` where qemu or the sysroot is missing.
    """
    bundle = verify_archive(path, keys)
    pieces: dict[str, Path | Iterable[bytes]] = {envelope.ENVELOPE_PATH: [bundle.envelope.raw]}
    pieces |= {entry.path: bundle.pieces(entry.path) for entry in bundle.manifest.files}
    sysroot = sysroot_of(profile, bundle.manifest.runtime)
    return _emulate(bundle.manifest, bundle.digest, pieces, profile, sysroot)


def _emulate(
    manifest: Manifest,
    digest: str,
    members: Mapping[str, Path | Iterable[bytes]],
    profile: Profile,
    sysroot: Sysroot,
) -> Emulated:
    if lacks := unmet(manifest, _facts(profile)):
        raise Incompatible(manifest.title, lacks)
    machine = Machine(sysroot, profile.cpu)
    version = _facts(profile).runtimes[manifest.runtime.value]
    runtime = f"{manifest.runtime.value} {version}"
    size_bytes = manifest.requires.unpacked_bytes
    most_rss_bytes = _MOST_RSS_BYTES + 12 * size_bytes
    words = ["-m", "edgekit_agent.warmup", "--max-rss-bytes", str(most_rss_bytes)]
    with tempfile.TemporaryDirectory(prefix="edgekit-emulate-") as name:
        for path, source in members.items():
            _write(Path(name, path), source)
        ended = machine.run_python(
            [*words, "--bundle", name, "--digest", digest],
            step=f"emulating {manifest.title} on a {machine.core}",
            bounds=Limits(
                timeout_s=_TIMEOUT_S + size_bytes / limits.MIB * _SECONDS_PER_MIB,
                memory_bytes=_BACKSTOP * most_rss_bytes,
            ),
        )
    report = _decoded(ended.out, _Report)
    if report is None or not report.passed:
        why = _ending(ended.code, ended.last_words) if report is None else report.reason
        raise EmulationFailed(manifest, f"{machine.title} with {runtime}", why)
    return Emulated(
        profile=profile.name,
        core=machine.core,
        runtime=runtime,
        vectors=manifest.golden.count,
        execution=report.execution or Execution(),
        seconds=ended.seconds,
        cpu_s=ended.cpu_s,
    )


def self_test(profile: Profile, sysroot: Sysroot) -> SelfTest:
    """Run `edgekit-agent selftest` in a sysroot on the profile's CPU.

    Errors: `Refused` where it does not come to an end.
    """
    machine = Machine(sysroot, profile.cpu)
    ended = machine.run_python(
        ["-m", "edgekit_agent", "selftest", "--json"],
        step=f"the agent's self-test on a {machine.core}",
        bounds=_SELF_TEST,
    )
    told = _decoded(ended.out, dict[str, Any])
    if told is None:
        why = _ending(ended.code, ended.last_words)
        raise Refused(f"the agent's self-test on a {machine.title} failed: {why}.")
    checks = msgspec.convert(told["checks"], tuple[Check, ...])
    return SelfTest(core=machine.core, checks=checks, seconds=ended.seconds)


def _facts(profile: Profile) -> DeviceFacts:
    """Of a device that is what its profile says."""
    return DeviceFacts(
        profile=profile.name,
        arch=profile.cpu.arch.value,
        features=profile.cpu.features,
        cores=profile.cpu.cores,
        ram_bytes=profile.memory.ram_mib * limits.MIB,
        runtimes={runtime.kind.value: runtime.version for runtime in profile.runtimes},
    )


def _write(path: Path, source: Path | Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path):
        shutil.copyfile(source, path)
        return
    with path.open("wb") as stream:
        stream.writelines(source)


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError:
        return None


def _ending(code: int, last_words: str) -> str:
    if code < 0:
        name = str(-code)
        with suppress(ValueError):
            name = signal.Signals(-code).name
        return f"it was killed by {name}"
    return f"it ended with code {code}" + (f" ({last_words})" if last_words else "")
