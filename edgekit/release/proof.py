"""Proving a bundle on this machine: signature, digests, then its golden vectors in the runtime.

Invariant: a `Proof` exists only of a bundle that a trusted key signed and whose every file matched;
it says whether the golden vectors were run, and why not where they were not.
"""

from __future__ import annotations

import enum
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit_contract.compatibility import unmet
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import read_features
from edgekit_contract.trust import PublicKey, VerifiedBundle, verify_archive, verify_envelope
from edgekit_runtime.golden import Mismatch, check_golden, read_golden
from edgekit_runtime.session import installed_runtimes, open_session, options_for

__all__ = ["GoldenMismatch", "GoldenRun", "Proof", "prove", "this_machine"]


class GoldenRun(enum.Enum):
    REPRODUCED = "reproduced"
    NOT_RUN = "not-run"


class GoldenMismatch(Refused):
    """The model, run here, does not give the outputs that it gave at build."""

    def __init__(self, bundle: str, mismatch: Mismatch, runtime: str) -> None:
        super().__init__(
            f"{bundle} does not do here, in {runtime}, what it did at build: {mismatch}; "
            "build it anew."
        )
        self.bundle, self.mismatch = bundle, mismatch


@dataclass(frozen=True, kw_only=True)
class Proof:
    manifest: Manifest
    digest: str
    """SHA-256 of the envelope: the bundle's identity."""
    key: PublicKey
    """The trusted key that signed it."""
    golden: GoldenRun
    runtime: str | None = None
    """Runtime and version that ran the golden vectors."""
    obstacles: tuple[str, ...] = ()
    """Why this machine did not run them."""


def prove(path: Path, keys: Sequence[PublicKey], machine: DeviceFacts) -> Proof:
    """Verify a bundle file, and run its golden vectors if it fits `machine`, which is this one.

    The vectors run on the CPU, whatever execution providers the bundle asks for.
    Errors: `BundleRejected`, `GoldenMismatch`, `Misused` where the file cannot be read; those of
    `open_session`.
    """
    bundle = verify_archive(path, keys)
    key = verify_envelope(bundle.envelope, keys, bundle=path.name)
    proof = Proof(manifest=bundle.manifest, digest=bundle.digest, key=key, golden=GoldenRun.NOT_RUN)
    kind = bundle.manifest.runtime.value
    if obstacles := unmet(bundle.manifest, machine):
        return replace(proof, obstacles=tuple(obstacles))
    runtime = f"{kind} {machine.runtimes[kind]}"
    if mismatch := _run_golden(bundle):
        raise GoldenMismatch(path.name, mismatch, runtime)
    return replace(proof, golden=GoldenRun.REPRODUCED, runtime=runtime)


def _run_golden(bundle: VerifiedBundle) -> Mismatch | None:
    manifest = bundle.manifest
    vectors = read_golden(
        bundle.read(manifest.golden.path), manifest.golden, manifest.inputs, manifest.outputs
    )
    with tempfile.TemporaryDirectory(prefix="edgekit-verify-") as name:
        for entry in manifest.files:  # all of them: a model may keep its weights beside it
            target = Path(name, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                stream.writelines(bundle.pieces(entry.path))
        options = replace(options_for(manifest), providers=())
        session = open_session(manifest.runtime, Path(name, manifest.model), options)
        try:
            return check_golden(session, manifest.golden, vectors)
        finally:
            session.close()


def this_machine(profile: str) -> DeviceFacts:
    """Facts of the machine that runs this, as those of a device of `profile`."""
    cpuinfo = Path("/proc/cpuinfo")
    return DeviceFacts(
        profile=profile,
        arch=platform.machine(),
        features=read_features(cpuinfo.read_text()) if cpuinfo.exists() else (),
        cores=os.cpu_count() or 1,
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        runtimes={kind.value: version for kind, version in installed_runtimes().items()},
    )
