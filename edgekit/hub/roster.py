"""The roster: what operators read of each device, from the store alone."""

from __future__ import annotations

import enum
from datetime import datetime, timezone

import msgspec

from edgekit.hub.invitation import Invitation
from edgekit.hub.registry import DeviceRow
from edgekit.hub.store import Store
from edgekit_contract.errors import Misused
from edgekit_contract.messages import Reported

__all__ = ["Contact", "Line", "find", "roster"]


class Contact(enum.Enum):
    """How far a device has come to be known."""

    INVITED = "invited"
    EXPIRED = "expired"
    """Invited, and too late."""
    ENROLLED = "enrolled"
    """Never heard of yet."""
    ONLINE = "online"
    UNREACHABLE = "unreachable"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One device. `contact` is that of its last word: a dashboard knows better who is late."""

    id: str
    profile: str
    contact: Contact
    heard_at: datetime | None = None
    bundles: tuple[str, ...] = ()
    """`NAME@VERSION` of what it serves."""
    desired: dict[str, str] = {}
    """Model to the version that it is to have."""
    generation: int = 0
    enrolled_at: datetime | None = None
    certificate_ends_at: datetime | None = None
    invitation_ends_at: datetime | None = None
    """Of an open invitation."""
    reported: Reported | None = None

    @property
    def heard(self) -> str:
        return f"{self.heard_at:%Y-%m-%d %H:%M:%S}" if self.heard_at is not None else ""


def roster(store: Store, *, now: datetime) -> list[Line]:
    """All devices, by id."""
    invitations = {i.device: i for i in store.registry.invitations() if i.used_at is None}
    rows = {row.id: row for row in store.registry.devices()}
    return [
        _line(id_, rows.get(id_), invitations.get(id_), now.timestamp())
        for id_ in sorted(rows.keys() | invitations.keys())
    ]


def find(store: Store, device: str, *, now: datetime) -> Line:
    """One device. Errors: `Misused`."""
    for line in roster(store, now=now):
        if line.id == device:
            return line
    raise Misused(f"there is no device {device[:80]!r} (edgekit devices list).")


def _line(id_: str, row: DeviceRow | None, invitation: Invitation | None, now: float) -> Line:
    ends_at = None
    if invitation is not None and invitation.open_at(now):
        ends_at = _instant(invitation.expires_at)
    if row is None:
        assert invitation is not None
        return Line(
            id=id_,
            profile=invitation.profile,
            contact=Contact.INVITED if ends_at else Contact.EXPIRED,
            invitation_ends_at=ends_at,
        )
    contact = Contact.ENROLLED
    if row.status is not None:
        contact = Contact.ONLINE if row.status.online else Contact.UNREACHABLE
    models = row.reported.models if row.reported is not None else {}
    return Line(
        id=id_,
        profile=row.profile,
        contact=contact,
        heard_at=_instant(row.heard_at),
        bundles=tuple(
            f"{name}@{model.active.version}"
            for name, model in sorted(models.items())
            if model.active is not None
        ),
        desired=row.desired,
        generation=row.generation,
        enrolled_at=_instant(row.enrolled_at),
        certificate_ends_at=_instant(row.certificate_ends_at),
        invitation_ends_at=ends_at,
        reported=row.reported,
    )


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
