"""The error tree, drawn once.

    EdgekitError                      anything the user can act on; its text says what to do next
    ├── Misused (exit 2)              a wrong argument: unknown profile, bad flag, unreadable path
    │   └── InvalidName               a device id, model name, version or profile that is not one
    └── Refused (exit 1)              it ran, and the answer is no
        ├── BundleRejected            a bundle's bytes, structure or signature; carries `reason`
        ├── Incompatible              a sound bundle that this device or profile cannot run
        └── MessageRejected           a message on the wire that is malformed or out of bounds

A caller's own bug is none of these: that is `RuntimeError`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

__all__ = [
    "BundleRejected",
    "EdgekitError",
    "Incompatible",
    "InvalidName",
    "MessageRejected",
    "Misused",
    "Reason",
    "Refused",
    "printable",
]


_MAX_DETAIL_CHARS: Final = 300


def printable(text: str) -> str:
    """`text` with control characters spelled out: part of it may come from a hostile file, and no
    escape sequence may reach a terminal or a log."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class EdgekitError(Exception):
    """Base of every error whose text is meant for the user."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Misused(EdgekitError):
    """The call's words are wrong; nothing ran. Exit code 2."""


class Refused(EdgekitError):
    """The work ran and the answer is no. Exit code 1."""


class InvalidName(Misused):
    """A name outside its alphabet or length."""

    def __init__(self, what: str, value: str, rule: str) -> None:
        super().__init__(f"{value[:80]!r} is not a {what}: use {rule}.")
        self.what, self.value, self.rule = what, value, rule


class Reason(enum.Enum):
    """Why a bundle is rejected."""

    NOT_A_BUNDLE = "not a bundle"
    NOT_CANONICAL = "archive bytes differ from the canonical layout"
    TOO_LARGE = "over a size or count limit"
    BAD_PATH = "a path that a bundle may not hold"
    BAD_ENVELOPE = "malformed envelope"
    BAD_MANIFEST = "malformed manifest"
    UNDECLARED_FILE = "a file that the manifest does not declare"
    MISSING_FILE = "a declared file is missing"
    DIGEST_MISMATCH = "a file's bytes differ from its digest"
    UNTRUSTED_SIGNATURE = "no signature by a trusted key"
    UNKNOWN_FORMAT = "a format version that this edgekit does not know"


class BundleRejected(Refused):
    """A bundle that must not be used."""

    def __init__(self, reason: Reason, detail: str, *, bundle: str = "bundle") -> None:
        detail = detail if len(detail) <= _MAX_DETAIL_CHARS else detail[:_MAX_DETAIL_CHARS] + "…"
        super().__init__(f"{bundle} rejected: {reason.value} ({detail}).")
        self.reason, self.detail, self.bundle = reason, detail, bundle


class Incompatible(Refused):
    """A sound bundle for something this device is not. `unmet` lists each failed requirement."""

    def __init__(self, bundle: str, unmet: Sequence[str]) -> None:
        super().__init__(f"{bundle} does not fit this device: {'; '.join(unmet)}.")
        self.bundle, self.unmet = bundle, tuple(unmet)


class MessageRejected(Refused):
    """A message that is malformed, too long or out of bounds."""
