"""Values as people read them: units, plurals, the tone of a state. Pure.

A tone says how a value is to be taken and is never the only sign of it: a word stands beside.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Final

from edgekit.hub.device import Presence, Severity
from edgekit.hub.rollout import RolloutStatus, Standing
from edgekit_contract.messages import EventKind, OutcomeKind

__all__ = [
    "EVENT_TONES",
    "NONE",
    "OUTCOME_TONES",
    "PRESENCE_TONES",
    "ROLLOUT_TONES",
    "SEVERITY_TONES",
    "STANDING_TONES",
    "Tone",
    "count",
    "duration",
    "instant",
    "milliseconds",
    "number",
    "percent",
    "rate",
    "share",
    "size",
    "temperature",
]

NONE: Final = "–"
"""What was not measured."""


class Tone(enum.Enum):
    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    MUTE = "mute"


PRESENCE_TONES: Final[Mapping[Presence, Tone]] = {
    Presence.ONLINE: Tone.GOOD,
    Presence.LATE: Tone.WARN,
    Presence.SUSPENDED: Tone.MUTE,
    Presence.UNREACHABLE: Tone.BAD,
    Presence.EXPECTED: Tone.MUTE,
}
STANDING_TONES: Final[Mapping[Standing, Tone]] = {
    Standing.WAITING: Tone.MUTE,
    Standing.UPDATING: Tone.BUSY,
    Standing.COMMITTED: Tone.GOOD,
    Standing.FAILED: Tone.BAD,
    Standing.SKIPPED: Tone.WARN,
}
ROLLOUT_TONES: Final[Mapping[RolloutStatus, Tone]] = {
    RolloutStatus.RUNNING: Tone.BUSY,
    RolloutStatus.PAUSED: Tone.WARN,
    RolloutStatus.DONE: Tone.GOOD,
    RolloutStatus.ABORTED: Tone.MUTE,
}
OUTCOME_TONES: Final[Mapping[OutcomeKind, Tone]] = {
    OutcomeKind.COMMITTED: Tone.GOOD,
    OutcomeKind.REFUSED: Tone.WARN,
    OutcomeKind.ROLLED_BACK: Tone.BAD,
}
EVENT_TONES: Final[Mapping[EventKind, Tone]] = {
    EventKind.STARTED: Tone.MUTE,
    EventKind.PHASE: Tone.BUSY,
    EventKind.OUTCOME: Tone.GOOD,
    EventKind.RETRY: Tone.WARN,
    EventKind.WORKER_LOST: Tone.BAD,
    EventKind.TAKEOVER: Tone.BAD,
    EventKind.REJECTED: Tone.WARN,
    EventKind.FALLBACK: Tone.WARN,
}
SEVERITY_TONES: Final[Mapping[int, Tone]] = {
    0: Tone.GOOD,
    Severity.WARNING: Tone.WARN,
    Severity.CRITICAL: Tone.BAD,
}


def number(value: int) -> str:
    """1234567 as 1,234,567."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def milliseconds(value: float | None) -> str:
    """Three digits that count, in ms, or in s from 10 s on."""
    if value is None:
        return NONE
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f} ms"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def temperature(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} °C"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}%"


def rate(value: float | None) -> str:
    """Per second."""
    return NONE if value is None else f"{value:.{0 if value >= 10 else 1}f}/s"


def share(part: int, whole: int) -> float:
    """0 to 1; of nothing it is 0."""
    return part / whole if whole else 0.0


def duration(value_s: float | None) -> str:
    """The two greatest units: `3 d 4 h`, `12 s`."""
    if value_s is None:
        return NONE
    left, parts = int(value_s), []
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= unit_s:
            parts.append(f"{left // unit_s} {unit}")
            left %= unit_s
    return " ".join(parts[:2]) or "0 s"


def instant(at: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
