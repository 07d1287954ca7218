"""The registry: devices, and the invitations by which they enrol.

Invariant: an invitation is used up in the transaction that records what was issued for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sql
from cryptography import x509
from sqlalchemy.dialects import sqlite

from edgekit.hub import invitation, schema
from edgekit.hub.database import Database, bump_orders
from edgekit.hub.invitation import Invitation
from edgekit_contract import messages
from edgekit_contract.errors import MessageRejected, Refused
from edgekit_contract.messages import Message, Reported, Status

__all__ = ["DeviceRow", "Registry", "TokenRefused"]

M = TypeVar("M", bound=Message)


class TokenRefused(Refused):
    """An enrolment token that is unknown, used or expired: which, is not told."""

    def __init__(self) -> None:
        super().__init__("the token is unknown, used or expired: ask for a new invitation.")


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a device. Instants are Unix seconds."""

    id: str
    profile: str
    enrolled_at: float | None
    certificate_ends_at: float | None
    heard_at: float | None
    status: Status | None
    reported: Reported | None
    generation: int
    desired: dict[str, str]
    """Model to version."""


class Registry:
    """Devices and invitations in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def devices(self) -> list[DeviceRow]:
        with self._database.reading() as db:
            return [_device(row) for row in db.execute(sql.select(schema.devices))]

    def device(self, device: str) -> DeviceRow | None:
        table = schema.devices
        with self._database.reading() as db:
            row = db.execute(sql.select(table).where(table.c.id == device)).one_or_none()
        return None if row is None else _device(row)

    def invite(self, new: Invitation) -> None:
        """Keep an invitation; the device's earlier one is void."""
        values = msgspec.to_builtins(new)
        statement = sqlite.insert(schema.invitations).values(**values)
        with self._database.writing() as db:
            db.execute(statement.on_conflict_do_update(index_elements=["device"], set_=values))

    def invitations(self) -> list[Invitation]:
        """The newest invitation of each device."""
        with self._database.reading() as db:
            rows = db.execute(sql.select(schema.invitations)).all()
            return [msgspec.convert(row, Invitation, from_attributes=True) for row in rows]

    def invitation(self, device: str, secret: str, *, now: float) -> Invitation:
        """The open invitation that `secret` proves. Errors: `TokenRefused`."""
        with self._database.reading() as db:
            return _open_invitation(db, device, secret, now)

    def enrol(
        self, device: str, secret: str, issue: Callable[[], x509.Certificate], *, now: datetime
    ) -> x509.Certificate:
        """Use up an invitation for the certificate that `issue` makes.

        Where `issue` raises, the invitation stays open. Errors: `TokenRefused`.
        """
        table = schema.devices
        instant = now.timestamp()
        with self._database.writing() as db:
            found = _open_invitation(db, device, secret, instant)
            certificate = issue()
            used = schema.invitations.c.device == device
            db.execute(sql.update(schema.invitations).where(used).values(used_at=instant))
            values = {
                "profile": found.profile,
                "enrolled_at": instant,
                "certificate_serial": f"{certificate.serial_number:x}",
                "certificate_ends_at": certificate.not_valid_after_utc.timestamp(),
            }
            statement = sqlite.insert(table).values(id=device, **values)
            db.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
            bump_orders(db)
        return certificate


def _open_invitation(db: sql.Connection, device: str, secret: str, now: float) -> Invitation:
    table = schema.invitations
    row = db.execute(sql.select(table).where(table.c.device == device)).one_or_none()
    found = None if row is None else msgspec.convert(row, Invitation, from_attributes=True)
    if not invitation.matches(secret, found) or found is None or not found.open_at(now):
        raise TokenRefused
    return found


def _device(row: Any) -> DeviceRow:
    return DeviceRow(
        id=row.id,
        profile=row.profile,
        enrolled_at=row.enrolled_at,
        certificate_ends_at=row.certificate_ends_at,
        heard_at=row.heard_at,
        status=_message(row.status, Status),
        reported=_message(row.reported, Reported),
        generation=row.generation,
        desired=msgspec.json.decode(row.desired, type=dict[str, str]),
    )


def _message(body: bytes | None, kind: type[M]) -> M | None:
    """A stored message; None where this edgekit cannot read what an older one kept."""
    if body is None:
        return None
    try:
        return messages.decode(body, kind)
    except MessageRejected:
        return None
