"""Invitations: what lets one device enrol once.

Invariant: the secret is in the token and nowhere else; the store holds its SHA-256. (256 random
bits need no slow hash: there is nothing to guess.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Final

import msgspec

from edgekit_contract.errors import Misused

__all__ = [
    "Invitation",
    "Token",
    "digest",
    "matches",
    "new_device_id",
    "new_secret",
    "parse_duration",
]

SECRET_BYTES: Final = 32
MAX_LIFE: Final = timedelta(days=90)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """Instants are Unix seconds."""

    device: str
    secret_sha256: str
    profile: str
    profile_toml: str
    created_at: float
    expires_at: float
    used_at: float | None = None

    def open_at(self, now: float) -> bool:
        return self.used_at is None and now < self.expires_at


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator carries to the device: `ek1.` and base64url of this as JSON."""

    url: str
    id: str
    secret: str
    ca: str
    """SHA-256 of the root CA's DER certificate."""
    root: str
    """SHA-256 of `1.root.json`."""

    def text(self) -> str:
        return "ek1." + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()


def new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def digest(secret: str) -> str:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, invitation: Invitation | None) -> bool:
    """Whether `secret` is the invitation's; takes as long where there is no invitation."""
    kept = invitation.secret_sha256 if invitation is not None else "0" * 64
    return hmac.compare_digest(digest(secret), kept)


def new_device_id(profile: str) -> str:
    """An id for a device that was given none: its profile and six random hex digits."""
    return f"{profile[:50].rstrip('-')}-{secrets.token_hex(3)}"


def parse_duration(text: str) -> timedelta:
    """`30m`, `24h`, `7d`: positive and at most 90 days. Errors: `Misused`."""
    number, unit = text[:-1], text[-1:]
    if unit in _UNITS and number.isascii() and number.isdigit() and len(number) < 9:
        life = timedelta(**{_UNITS[unit]: int(number)})
        if timedelta(0) < life <= MAX_LIFE:
            return life
    raise Misused(f"{text[:40]!r} is no time to live: use 30m, 24h or up to 90d.")
