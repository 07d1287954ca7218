"""The values that the hub holds of one device. `edgekit.hub.state` alone writes them.

Instants are Unix seconds of the hub's clock.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from edgekit.hub.points import Points
from edgekit_contract.messages import Event, Health, ModelHealth, Reported, ReportedModel, Status

__all__ = [
    "DEVICE_COLUMNS",
    "MODEL_COLUMNS",
    "DeviceState",
    "ModelState",
    "Presence",
    "Problem",
    "ProblemKind",
    "Severity",
    "believed",
    "host_values",
    "model_values",
    "requests_since",
]

MODEL_COLUMNS: Final = ("p50_ms", "p95_ms", "p99_ms", "rss_bytes", "inferences_per_s")
DEVICE_COLUMNS: Final = ("temperature_c", "cpu_percent", "daemon_rss_bytes")

POINTS_KEPT: Final = 60
EVENTS_KEPT: Final = 16
HEALTH_S: Final = 30.0
"""What a device is taken to report every, until two of its messages tell better."""
LATE_HEALTHS: Final = 3
"""A device is late when so many of its health messages are missing."""
LATE_BOUNDS_S: Final = (5.0, 3600.0)

CLOCK_TRUSTED_S: Final = 300.0
"""A device's clock may run ahead of the hub's by so much before the hub's is taken instead."""
CLOCK_BEGAN: Final = 1_600_000_000.0
"""A device that thinks it lives before (2020) has lost its clock."""


class Presence(enum.Enum):
    """Whether a device can be heard, from the best known to the least."""

    ONLINE = "online"
    LATE = "late"
    """Connected as far as the broker knows, yet silent for too long."""
    SUSPENDED = "suspended"
    """It said that it would sleep."""
    UNREACHABLE = "unreachable"
    """The broker lost it: its Will came. Not failed: it may well go on inferring."""
    EXPECTED = "expected"
    """Enrolled, and never heard of."""


class Severity(enum.IntEnum):
    WARNING = 1
    CRITICAL = 2


class ProblemKind(enum.Enum):
    CONTESTED = "contested"
    """Two agents use one identity."""
    WORKER_LOST = "worker-lost"
    FAILING = "failing"
    """Requests end in errors."""
    UNREACHABLE = "unreachable"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"
    STALLED = "stalled"
    """An update that does not move."""
    THROTTLED = "throttled"
    HOT = "hot"
    DISK_LOW = "disk-low"
    LATE = "late"
    FALLBACK = "fallback"
    """A model is computed by less than its profile asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    kind: ProblemKind
    severity: Severity
    text: str
    since: float | None = None
    model: str | None = None


@dataclass(slots=True)
class ModelState:
    """One model of one device."""

    name: str
    reported: ReportedModel = field(default_factory=ReportedModel)
    moved_at: float = 0.0
    """When phase, target or progress last changed."""
    health: ModelHealth | None = None
    failing_share: float = 0.0
    """Errors per request between the newest two health messages, 0 to 1."""
    worker_lost_at: float | None = None
    points: Points = field(default_factory=lambda: Points(MODEL_COLUMNS, keep=POINTS_KEPT))

    @property
    def active_version(self) -> str:
        """The empty string where none serves."""
        return self.reported.active.version if self.reported.active else ""


@dataclass(slots=True)
class DeviceState:
    """One device: what it said, when, and what follows from that."""

    id: str
    profile: str = ""
    version: int = 0
    """The fleet's `version` when this device last changed."""
    status: Status | None = None
    reported: Reported | None = None
    health: Health | None = None
    heard_at: float | None = None
    """Last word of the device itself; a Will is not its own word."""
    unreachable_at: float | None = None
    health_every_s: float = HEALTH_S
    models: dict[str, ModelState] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    points: Points = field(default_factory=lambda: Points(DEVICE_COLUMNS, keep=POINTS_KEPT))
    takeovers: int = 0
    takeover_at: float | None = None

    # what follows, kept up to date by `fold` and `advance`
    presence: Presence = Presence.EXPECTED
    problems: tuple[Problem, ...] = ()
    """Gravest first."""

    # what the fold remembers
    alive_at: float | None = None
    """From when its silence counts: as `heard_at`, but a retained message found counts as well."""
    instances: tuple[str, str] = ("", "")
    """Of the daemon: the one before, and the one now."""
    health_seen: tuple[str, int] = ("", -1)
    """Stream and highest sequence."""
    event_seen: tuple[str, int] = ("", -1)
    due_at: float | None = None
    """When time alone may next change it; None: never."""

    @property
    def late_after_s(self) -> float:
        low, high = LATE_BOUNDS_S
        return min(max(LATE_HEALTHS * self.health_every_s, low), high)

    @property
    def severity(self) -> int:
        """Of its gravest problem; 0 without one."""
        return self.problems[0].severity if self.problems else 0


def believed(told: float, arrived: float) -> float:
    """When something happened: by the device's clock, unless that cannot be right."""
    return told if CLOCK_BEGAN < told <= arrived + CLOCK_TRUSTED_S else arrived


def host_values(health: Health) -> tuple[float | None, ...]:
    """A row of `DEVICE_COLUMNS`."""
    host, daemon = health.host, health.daemon
    return (
        host.temperature_c if host else None,
        host.cpu_percent if host else None,
        daemon.rss_bytes if daemon else None,
    )


def model_values(
    health: ModelHealth, before: ModelHealth | None, elapsed_s: float
) -> tuple[float | None, ...]:
    """A row of `MODEL_COLUMNS`; `before` is the model's health `elapsed_s` earlier, if known."""
    return (
        health.p50_ms,
        health.p95_ms,
        health.p99_ms,
        health.worker.rss_bytes if health.worker else None,
        requests_since(health, before)[0] / elapsed_s if before and elapsed_s > 0 else None,
    )


def requests_since(health: ModelHealth, before: ModelHealth | None) -> tuple[int, int]:
    """Inferences and errors between two messages; both 0 where the worker began anew."""
    if before is None or (before.version, before.restarts) != (health.version, health.restarts):
        return 0, 0
    inferences, errors = health.inferences - before.inferences, health.errors - before.errors
    return max(0, inferences), max(0, errors)
