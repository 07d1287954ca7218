"""`device.toml`: who this device is, where its hub is, and the knobs. Parsed once at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from edgekit_agent import storage
from edgekit_agent.probation import ProbationLimits
from edgekit_agent.window import WINDOW_PATTERN
from edgekit_contract import names
from edgekit_contract.errors import EdgekitError, Misused

__all__ = ["DeviceConfig", "Knobs", "ThermalPaths", "Trimmed", "load", "render"]

_MAX_CONFIG_BYTES: Final = 1 << 16

T = TypeVar("T")
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Window = Annotated[str, msgspec.Meta(pattern=WINDOW_PATTERN)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Knobs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[agent]`."""

    health_s: Seconds = 30.0
    poll_s: Seconds = 3600.0
    """Between looks at the hub's metadata when it wants nothing new."""
    probation_s: Seconds = 600.0
    probation_inferences: int = 20
    probation_error_share: Share = 0.05
    api_port: Port = 8000
    """Of the first model; the next take the next. 0: whichever is free."""
    max_rss_mib: int | None = None
    """Of a worker: refused in WARMUP, rolled back in PROBATION."""
    max_fetch_mib: int | None = None
    """Of one update: refused in PREFLIGHT."""
    window: Window | None = None
    """Hours of the day, UTC, in which an update may pass PREFLIGHT."""
    max_latency_ms: float | None = None
    """Median over the golden vectors: refused in WARMUP."""
    hang_s: Seconds = 30.0
    """An inference that runs longer is a hang."""
    load_s: Seconds = 120.0
    """A worker that is not ready by then has failed."""
    retry_s: Seconds = 5.0
    """Before the first repetition of an interrupted update; doubles up to `most_retry_s`."""
    most_retry_s: Seconds = 900.0
    request_timeout_s: Seconds = 5.0
    """Silence of the hub after which a range is asked for again."""
    stall_s: Seconds = 60.0
    """Without a useful byte from the hub an update is interrupted."""
    warmup_s: Seconds = 300.0
    reconnect_s: Seconds = 1.0
    """Before the first repetition of a failed connection; doubles up to two minutes."""
    takeover_s: Seconds = 30.0
    """As `reconnect_s`, after another client has taken this device's session."""

    @property
    def probation(self) -> ProbationLimits:
        return ProbationLimits(
            duration_s=self.probation_s,
            least_inferences=self.probation_inferences,
            max_error_share=self.probation_error_share,
            max_rss_bytes=self.max_rss_mib << 20 if self.max_rss_mib else None,
        )


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    fleet: str
    profile: str
    hub_url: str
    """Of enrolment."""
    mqtt_host: str
    mqtt_port: Port
    agent: Knobs = Knobs()


class ThermalPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Shell patterns, as in `edgekit_contract.profile.Thermal`."""

    temperature: tuple[str, ...] = ()
    throttled: tuple[str, ...] = ()


class Trimmed(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon reads of `profile.toml`; the updater parses all of it."""

    thermal: ThermalPaths = ThermalPaths()


def load(directory: Path) -> tuple[DeviceConfig, Trimmed]:
    """Read the configuration of a device directory. Errors: `Misused`."""
    return (
        _parse(directory / "device.toml", DeviceConfig),
        _parse(directory / "profile.toml", Trimmed),
    )


def _parse(path: Path, kind: type[T]) -> T:
    data = storage.read(path, limit_bytes=_MAX_CONFIG_BYTES)
    if data is None:
        raise Misused(f"{path} is not there: enrol this device first (edgekit-agent enroll TOKEN).")
    try:
        value = msgspec.toml.decode(data, type=kind)
        if isinstance(value, DeviceConfig):
            names.device_id(value.id)
            names.fleet_name(value.fleet)
            names.profile_name(value.profile)
    except (msgspec.DecodeError, UnicodeDecodeError, EdgekitError) as error:
        raise Misused(f"{path} cannot be used: {error}; correct it or enrol again.") from error
    return value


def render(config: DeviceConfig) -> str:
    """`device.toml` as enrolment writes it: identity only, every knob at its default."""
    lines = ["# Written by `edgekit-agent enroll`. Knobs go to the end; docs/agent.md lists them."]
    for name in ("id", "fleet", "profile", "hub_url", "mqtt_host", "mqtt_port"):
        # a TOML basic string and an integer are spelled as in JSON
        lines.append(f"{name} = {json.dumps(getattr(config, name))}")
    return "\n".join([*lines, "", "[agent]", ""])
