"""Measuring bundles on a device of a fleet: sign, ask, wait, keep.

Invariant: a device is asked for one bundle at a time; what is kept is what the device itself said,
by its profile, the runtime version that it ran and the model's structure.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import msgspec

from edgekit.build.notebook import Note, Notebook, key_of
from edgekit.build.rendering.subject import open_subject
from edgekit.build.report import Estimate, Figure
from edgekit.build.scratch import open_scratch
from edgekit.hub.broker import acl
from edgekit.hub.fleet import Fleet
from edgekit.hub.registry import DeviceRow
from edgekit.hub.store import Store
from edgekit.release.keys import PrivateKey
from edgekit.release.storage import write_file
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import Bench, Benched
from edgekit_contract.profile import Profile, parse_profile
from edgekit_contract.trust import UntrustedBundle, checked_pieces, open_bundle
from edgekit_converters.structure import structure_digest

__all__ = ["DeviceMeasured", "measure_on_device"]

_POLL_S: Final = 0.25
_PATIENCE_S: Final = 900.0
"""For fetching, loading and the answer, beside the runs."""


class DeviceMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """What one bundle took on the device: a figure, or the reason why there is none."""

    bundle: str
    device: str
    figure: Figure | None = None
    runtime: str = ""
    reason: str = ""
    estimate: Estimate | None = None
    """What the build had estimated."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    path: Path
    manifest: Manifest
    structure: str
    estimate: Estimate | None


def measure_on_device(
    bundles: Sequence[Path],
    *,
    fleet: Fleet,
    store: Store,
    device: str,
    key: PrivateKey,
    budget_s: float,
    notebook: Notebook,
    say: Callable[[str], None],
    patience_s: float = _PATIENCE_S,
) -> tuple[DeviceMeasured, ...]:
    """Have `device` time each bundle for `budget_s`; a running hub carries the order.

    Figures go into `notebook` as they come. Errors: `Misused` for a device or bundle that is none
    of the fleet's, `Refused` where nobody answers, those of `Repository.add_bench`.
    """
    row = _device(store, device)
    profile = _profile(store, row)
    candidates = [_candidate(path, profile, device) for path in bundles]
    _renew_access(fleet)
    digests = fleet.repository.add_bench(
        bundles, targets_key=key, trusted=fleet.build_keys(), now=_now()
    )
    found = []
    for candidate, digest in zip(candidates, digests, strict=True):
        say(f"asking {device} for {candidate.manifest.title}")
        answer = _ask(store, device, digest, budget_s=budget_s, patience_s=patience_s)
        one = _measured(candidate, device, answer)
        if one.figure is not None:
            notebook.add([_note(candidate, profile, one, one.figure)])
        found.append(one)
    return tuple(found)


def _device(store: Store, device: str) -> DeviceRow:
    row = store.registry.device(device)
    if row is None:
        raise Misused(f"there is no device {device!r} in this fleet (edgekit devices list).")
    if row.status is not None and not row.status.online:
        raise Refused(f"{device} is offline: measure when it is back.")
    return row


def _profile(store: Store, row: DeviceRow) -> Profile:
    """As the device has it: the profile that it was invited with."""
    for invitation in store.registry.invitations():
        if invitation.device == row.id:
            return parse_profile(
                invitation.profile_toml.encode(), source=f"the profile of {row.id}"
            )
    raise Misused(f"nothing is known of the profile of {row.id}: invite it again.")


def _candidate(path: Path, profile: Profile, device: str) -> _Candidate:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if manifest.profile != profile.name:
        raise Misused(
            f"{path.name} is for {manifest.profile}, {device} is a {profile.name}: build another."
        )
    return _Candidate(
        path=path,
        manifest=manifest,
        structure=_structure(bundle),
        estimate=_estimate(path),
    )


def _structure(bundle: UntrustedBundle) -> str:
    manifest = bundle.manifest
    (entry,) = (entry for entry in manifest.files if entry.path == manifest.model)
    with open_scratch() as scratch:
        model = scratch / Path(manifest.model).name
        with model.open("wb") as stream:
            stream.writelines(checked_pieces(entry, bundle.archive.pieces(entry.path)))
        return structure_digest(model)


def _estimate(path: Path) -> Estimate | None:
    """What the build estimated, by the report in the bundle; None where it has none."""
    try:
        subject = open_subject(path)
    except Refused:
        return None
    recipe = subject.manifest.provenance.recipe
    return next((c.estimate for c in subject.report.candidates if c.title == recipe), None)


def _renew_access(fleet: Fleet) -> None:
    """Fleets of an older edgekit do not let devices answer. Errors: `Refused`."""
    text = acl(fleet.name)
    if fleet.acl.read_text() != text:
        write_file(fleet.acl, text.encode(), mode=0o600)
        raise Refused(
            f"the broker's access list was of an older edgekit: {fleet.acl} is written anew, "
            "restart the broker and try again."
        )


def _ask(store: Store, device: str, digest: str, *, budget_s: float, patience_s: float) -> Benched:
    now = _now()
    bench = Bench(
        id=secrets.token_hex(8),
        digest=digest,
        budget_s=budget_s,
        until=now + timedelta(seconds=patience_s + budget_s),
    )
    store.benches.order(device, bench, now=now.timestamp())
    ends = time.monotonic() + patience_s + budget_s
    while (answer := store.benches.answered(bench.id)) is None:
        if time.monotonic() > ends:
            raise Refused(
                f"{device} did not answer in {patience_s + budget_s:.0f} s: see that hub, broker "
                "and device run (edgekit devices list)."
            )
        time.sleep(_POLL_S)
    return answer


def _measured(candidate: _Candidate, device: str, answer: Benched) -> DeviceMeasured:
    figure, reason = None, answer.reason
    if answer.median_ms is not None and not reason:
        low, high = answer.low_ms or answer.median_ms, answer.high_ms or answer.median_ms
        ordered = 0 < low <= answer.median_ms <= high < math.inf
        kind, _, version = answer.runtime.partition(" ")
        runtime = candidate.manifest.runtime.value
        if not ordered or answer.runs < 1:
            reason = "what it sent is no latency"
        elif kind != runtime:
            reason = f"it says that {kind or 'no runtime'} ran it, and not {runtime}"
        elif not version:
            reason = f"it does not say which version of {runtime} ran it"
    if answer.median_ms is not None and not reason:
        figure = Figure(
            median_ms=answer.median_ms,
            low=low,
            high=high,
            p95_ms=answer.p95_ms or answer.median_ms,
            rss_bytes=answer.rss_bytes or 0,
            runs=answer.runs,
            device=device,
            at=answer.at.isoformat().replace("+00:00", "Z"),
        )
    return DeviceMeasured(
        bundle=candidate.manifest.title,
        device=device,
        figure=figure,
        runtime=answer.runtime,
        reason=reason or ("" if figure else "it gave no figures"),
        estimate=candidate.estimate,
    )


def _note(
    candidate: _Candidate, profile: Profile, measured: DeviceMeasured, figure: Figure
) -> Note:
    runtime = profile.runtime(candidate.manifest.runtime)
    if runtime is None:
        raise Misused(f"{profile.name} has no {candidate.manifest.runtime.value}.")
    version = measured.runtime.partition(" ")[2] or None
    key = key_of(profile, runtime, model=candidate.structure, version=version)
    key = msgspec.structs.replace(key, threads=candidate.manifest.threads)
    return Note(key=key, bundle=measured.bundle, figure=figure)


def _now() -> datetime:
    return datetime.now(timezone.utc)
