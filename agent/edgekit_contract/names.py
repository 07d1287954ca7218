"""Names that cross the wire or become paths: checked where they enter, plain `str` after.

Every name is safe as an MQTT topic level, a file name and a URL segment.
"""

from __future__ import annotations

import re
from typing import Final

from edgekit_contract import limits
from edgekit_contract.errors import InvalidName

__all__ = [
    "BENCH",
    "DIGEST_PATTERN",
    "HUB",
    "MODEL_NAME_PATTERN",
    "VERSION_PATTERN",
    "bundle_filename",
    "device_id",
    "file_path",
    "fleet_name",
    "model_name",
    "profile_name",
    "version",
]

HUB: Final = "hub"
"""The hub's own MQTT user name; no device may be called so."""

BENCH: Final = "_bench"
"""Where bundles that are only to be measured are signed: no model can be called so, and no desired
state can name it."""
DIGEST_PATTERN: Final = r"\A[0-9a-f]{64}\Z"

MODEL_NAME_PATTERN: Final = r"\A[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z"
VERSION_PATTERN: Final = r"\A[0-9][0-9A-Za-z.+]{0,30}(?:-[0-9A-Za-z.]{1,16})?\Z"
_SLUG = re.compile(MODEL_NAME_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)
_DEVICE = re.compile(r"[a-z0-9-]{1,64}\Z")
_PATH_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}\Z")
_SLUG_RULE: Final = "1 to 64 of a-z, 0-9 and -, not beginning or ending with -"


def device_id(value: str) -> str:
    """Return `value` if it is a device id, else raise `InvalidName`."""
    if not _DEVICE.match(value):
        raise InvalidName("device id", value, "1 to 64 of a-z, 0-9 and -")
    if value == HUB:
        raise InvalidName("device id", value, "another word: 'hub' is reserved")
    return value


def fleet_name(value: str) -> str:
    return _slug("fleet name", value)


def model_name(value: str) -> str:
    return _slug("model name", value)


def profile_name(value: str) -> str:
    return _slug("profile name", value)


def version(value: str) -> str:
    """A release version such as 1.2.0 or 2026.11-rc1. Versions have no order; counters have."""
    if not _VERSION.match(value):
        raise InvalidName(
            "version", value, "a digit first, then up to 30 of 0-9 A-Z a-z . + and one -suffix"
        )
    return value


def file_path(value: str) -> str:
    """A path inside a bundle: relative, POSIX, no `.` or `..`, plain characters.

    At most `limits.MAX_PATH_BYTES` in 8 segments.
    """
    segments = value.split("/")
    if (
        len(value) > limits.MAX_PATH_BYTES
        or len(segments) > 8
        or not all(_PATH_SEGMENT.match(s) for s in segments)
    ):
        raise InvalidName("bundle path", value, "relative segments of A-Z a-z 0-9 . _ + -")
    return value


def bundle_filename(name: str, version_: str, profile: str) -> str:
    """`NAME-VERSION-PROFILE.ekb`."""
    return f"{model_name(name)}-{version(version_)}-{profile_name(profile)}.ekb"


def _slug(what: str, value: str) -> str:
    if not _SLUG.match(value):
        raise InvalidName(what, value, _SLUG_RULE)
    return value
