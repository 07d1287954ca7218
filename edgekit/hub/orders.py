"""What operators order: invitations and rollouts, the same from the command line and the pages."""

from __future__ import annotations

import difflib
import hashlib
import secrets
from datetime import datetime, timedelta

import msgspec
from cryptography import x509

from edgekit.hub import invitation
from edgekit.hub.authority import fingerprint
from edgekit.hub.fleet import Fleet
from edgekit.hub.invitation import Invitation, Token
from edgekit.hub.rollout import (
    Assignment,
    Rollout,
    RolloutStatus,
    Standing,
    check_selector,
    chosen_devices,
    chosen_profile,
)
from edgekit.hub.store import Store
from edgekit.release.releases import Release
from edgekit.release.repository import Repository
from edgekit_contract import names
from edgekit_contract.errors import Misused
from edgekit_contract.profile import parse_profile

__all__ = ["Invited", "Progress", "Started", "invite", "parse_release", "progress", "start_rollout"]


class Invited(msgspec.Struct, frozen=True, kw_only=True):
    """A new invitation. The token is shown once and kept nowhere."""

    device: str
    profile: str
    expires_at: datetime
    token: str


class Started(msgspec.Struct, frozen=True, kw_only=True):
    rollout: Rollout
    superseded: tuple[Rollout, ...]
    """Unfinished rollouts of the same model, which ended by this."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout, and device to its part in it."""

    rollout: Rollout
    devices: dict[str, Assignment]

    @property
    def ended(self) -> bool:
        return self.rollout.status in (RolloutStatus.DONE, RolloutStatus.ABORTED)

    @property
    def good(self) -> bool:
        """It is done, and no device failed."""
        failed = any(part.standing is Standing.FAILED for part in self.devices.values())
        return self.rollout.status is RolloutStatus.DONE and not failed


def progress(store: Store, name: str | None) -> list[Progress]:
    """The rollout of this id, MODEL or MODEL@VERSION, or all, newest first. Errors: `Misused`."""
    found = [store.ledger.rollout(name)] if name is not None else store.ledger.rollouts()
    return [Progress(rollout=r, devices=store.ledger.assignments(r.id)) for r in found]


def invite(
    fleet: Fleet,
    store: Store,
    *,
    device: str | None,
    profile_toml: bytes,
    life: timedelta,
    now: datetime,
) -> Invited:
    """Invite a device (None: with a new id); its earlier invitation is void. Errors: `Misused`."""
    profile = parse_profile(profile_toml, source="the profile")
    id_ = names.device_id(device or invitation.new_device_id(profile.name))
    secret = invitation.new_secret()
    ends_at = now + life
    store.registry.invite(
        Invitation(
            device=id_,
            secret_sha256=invitation.digest(secret),
            profile=profile.name,
            profile_toml=profile_toml.decode(),
            created_at=now.timestamp(),
            expires_at=ends_at.timestamp(),
        )
    )
    host = fleet.settings.hosts[0]
    token = Token(
        url=f"https://{f'[{host}]' if ':' in host else host}:{fleet.settings.https_port}",
        id=id_,
        secret=secret,
        ca=fingerprint(x509.load_pem_x509_certificate(fleet.root_ca.read_bytes())),
        root=hashlib.sha256(fleet.repository.first_root()).hexdigest(),
    )
    return Invited(device=id_, profile=profile.name, expires_at=ends_at, token=token.text())


def parse_release(text: str) -> tuple[str, str]:
    """Split NAME@VERSION. Errors: `Misused`."""
    name, at, version = text.partition("@")
    if not at:
        raise Misused(f"{text[:80]!r} is not NAME@VERSION (edgekit release list).")
    return names.model_name(name), names.version(version)


def start_rollout(
    store: Store,
    repository: Repository,
    *,
    model: str,
    version: str,
    selector: str,
    now: datetime,
) -> Started:
    """Begin a rollout of a release; unfinished ones of its model end by it.

    Errors: `UnknownRelease`, `RepositoryDamaged`, and `Misused` where the selector names what the
    fleet does not have. Nothing has changed then.
    """
    release = repository.release(model, version)
    _check_known(store, check_selector(selector), release)
    rollout = Rollout(
        id=secrets.token_hex(4),
        model=model,
        version=version,
        selector=selector,
        started_at=now.timestamp(),
    )
    return Started(rollout=rollout, superseded=tuple(store.ledger.start(rollout)))


def _check_known(store: Store, selector: str, release: Release) -> None:
    """Demand devices that the fleet has, and a profile of one or of a bundle. Errors: `Misused`."""
    invited = {i.device: i.profile for i in store.registry.invitations()}
    known = invited | {row.id: row.profile for row in store.registry.devices()}
    for device in chosen_devices(selector):
        if device not in known:
            near = difflib.get_close_matches(device, known, 1)
            hint = f"did you mean {near[0]}? (" if near else "choose from those there are ("
            raise Misused(f"there is no device {device!r}: {hint}edgekit devices list).")
    profile = chosen_profile(selector)
    if profile is not None and profile not in {*known.values(), *release.bundles}:
        raise Misused(
            f"no device is of the profile {profile!r}, and {release.title} has no bundle for it "
            "(edgekit devices list)."
        )
