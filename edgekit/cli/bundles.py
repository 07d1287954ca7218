"""`edgekit inspect` and `edgekit verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

import edgekit_profiles
from edgekit.cli.output import emit, json_option, remark, table
from edgekit.release.keys import read_public_key
from edgekit.release.proof import GoldenRun, Proof, prove, this_machine
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import Manifest, TensorSpec
from edgekit_contract.profile import PROVIDERS, Profile
from edgekit_contract.trust import PublicKey, UntrustedBundle, open_bundle
from edgekit_converters.required_operators import FILENAME as OPERATORS_FILE

if TYPE_CHECKING:
    from edgekit.emulation import Emulated

__all__ = ["inspect", "verify"]

_BUNDLE = click.Path(path_type=Path)
_OPERATORS = f"files/{OPERATORS_FILE}"


@click.command()
@click.argument("bundle", type=_BUNDLE)
@json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE says of itself. Nothing of it is verified."""
    opened = open_bundle(bundle)
    if as_json:
        emit(
            {
                "verified": False,
                "digest": _digest(opened),
                "signatures": [s.keyid for s in opened.envelope.signatures],
                "manifest": opened.manifest,
            }
        )
        return
    table((), list(_rows(opened)))
    click.echo()
    table(
        ("FILE", "BYTES", "SHA-256"),
        [(file.path, f"{file.size:,}", file.sha256) for file in opened.manifest.files],
    )
    remark("not verified: this is what the bundle says; `edgekit verify` proves it.")


@click.command()
@click.argument("bundle", type=_BUNDLE)
@click.option(
    "--trust",
    "trusted",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    metavar="PUB",
    help="Public key whose signature counts; may be given again.",
)
@click.option("--emulate", is_flag=True, help="Run it on its profile's CPU, too, emulated.")
@click.option("--profile", "profile_name", metavar="FILE",
              help="The profile's TOML file, if edgekit does not ship it.")  # fmt: skip
@json_option
def verify(
    bundle: Path,
    trusted: tuple[Path, ...],
    emulate: bool,
    profile_name: str | None,
    as_json: bool,
) -> None:
    """Prove BUNDLE: its signature, every file, and its golden vectors if this machine can.

    With --emulate the golden vectors run as the profile's devices would run them (see edgekit
    emulation setup).
    """
    if profile_name is not None and not emulate:
        raise Misused("--profile goes with --emulate: the bundle names its own profile.")
    keys = [read_public_key(path) for path in trusted]
    manifest = open_bundle(bundle).manifest
    # before the golden vectors: what can be told at once is not told after a minute
    profile = edgekit_profiles.load(profile_name or manifest.profile) if emulate else None
    proof = prove(bundle, keys, this_machine(manifest.profile))
    emulated = _emulated(bundle, keys, profile) if profile is not None else None
    if as_json:
        emit(_summary(proof) | ({"emulated": emulated} if emulate else {}))
        return
    manifest = proof.manifest
    rows = [
        ("bundle", f"{manifest.title}, digest {proof.digest}"),
        ("signature", f"by {proof.key.keyid} ({proof.key.algorithm})"),
        ("files", f"{len(manifest.files)}, all as signed"),
        ("golden vectors", _golden(proof)),
    ]
    if emulated is not None:
        rows.append(("emulated", str(emulated)))
    table((), rows)


def _emulated(bundle: Path, keys: Sequence[PublicKey], profile: Profile) -> Emulated:
    from edgekit.emulation import emulate_file

    return emulate_file(bundle, keys, profile)


def _golden(proof: Proof) -> str:
    if proof.golden is GoldenRun.REPRODUCED:
        others = [name for name in proof.manifest.providers if name != PROVIDERS[0]]
        where = f", on the CPU, not in {' or '.join(others)}" if others else ""
        return f"{proof.manifest.golden.count} reproduced in {proof.runtime}{where}"
    return f"NOT RUN on this machine: {'; '.join(proof.obstacles)}"


def _summary(proof: Proof) -> dict[str, object]:
    manifest = proof.manifest
    return {
        "verified": True,
        "name": manifest.name,
        "version": manifest.version,
        "profile": manifest.profile,
        "digest": proof.digest,
        "keyid": proof.key.keyid,
        "files": len(manifest.files),
        "golden": proof.golden.value,
        "runtime": proof.runtime,
        "obstacles": proof.obstacles,
    }


def _digest(bundle: UntrustedBundle) -> str:
    return hashlib.sha256(bundle.envelope.raw).hexdigest()


def _rows(bundle: UntrustedBundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "bundle", manifest.title
    yield "digest", _digest(bundle)
    yield "signed by", ", ".join(s.keyid for s in bundle.envelope.signatures) or "nobody"
    yield "runtime", _runtime(manifest)
    for tensor in manifest.inputs:
        yield "input", _tensor(tensor)
    for tensor in manifest.outputs:
        yield "output", _tensor(tensor)
    for step in (*manifest.preprocess, *manifest.postprocess):
        fields = msgspec.to_builtins(step)
        kind = fields.pop("kind")
        yield kind, ", ".join(f"{name} {value}" for name, value in fields.items())
    yield "model", manifest.model
    if manifest.labels:
        yield "labels", manifest.labels
    if any(entry.path == _OPERATORS for entry in manifest.files):
        yield "minimal build", f"onnxruntime's build.sh --include_ops_by_config {_OPERATORS}"
    golden, requires, origin = manifest.golden, manifest.requires, manifest.provenance
    yield "golden vectors", f"{golden.count}, {golden.source}"
    for name, tolerance in golden.tolerances.items():
        kept = ", top-1 kept" if name in golden.top1 else ""
        yield "tolerance", f"{name}: {tolerance.absolute:g} + {tolerance.relative:g} x{kept}"
    yield (
        "needs",
        ", ".join(
            (
                "/".join(arch.value for arch in requires.arch) or "any CPU",
                *requires.features,
                f"{requires.unpacked_bytes:,} bytes of disk",
                f"{requires.peak_ram_bytes:,} bytes of RAM",
            )
        ),
    )
    yield "made from", f"{origin.source_name} ({origin.source_sha256})"
    yield "recipe", origin.recipe
    if origin.calibration_sha256:
        yield "calibration", origin.calibration_sha256
    if origin.git_commit:
        yield "Git commit", origin.git_commit
    yield "tools", ", ".join(f"{name} {version}" for name, version in origin.tools.items())


def _runtime(manifest: Manifest) -> str:
    requires = manifest.requires
    parts = [
        f"{manifest.runtime.value} {requires.min_runtime_version} or later",
        f"{manifest.threads} thread(s)",
        *manifest.providers,
    ]
    if requires.ir is not None:
        parts.append(f"IR {requires.ir}, opset {requires.opset}")
    return ", ".join(parts)


def _tensor(tensor: TensorSpec) -> str:
    shape = " x ".join(str(axis) for axis in tensor.shape)
    meaning = f": {tensor.meaning}" if tensor.meaning else ""
    return f"{tensor.name} {tensor.dtype} [{shape}]{meaning}"
