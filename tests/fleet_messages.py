"""Messages as devices send them, for tests of the hub's side."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from itertools import count

from edgekit_contract.messages import (
    BundleRef,
    DeviceFacts,
    Event,
    EventKind,
    Execution,
    Health,
    HostMetrics,
    ModelHealth,
    Outcome,
    OutcomeKind,
    Phase,
    ProcessMetrics,
    Reported,
    ReportedModel,
    Status,
)

_SEQ = count(1)


def instant(at: float | None = None) -> datetime:
    return datetime.fromtimestamp(time.time() if at is None else at, timezone.utc)


def online(instance: str = "a1") -> Status:
    return Status(online=True, instance=instance, at=instant(), agent="0.1.0")


def will(instance: str = "a1") -> Status:
    return Status(online=False, instance=instance)


def facts(profile: str = "raspberry-pi-5") -> DeviceFacts:
    return DeviceFacts(
        profile=profile,
        arch="aarch64",
        features=("neon", "asimddp", "fphp"),
        cores=4,
        ram_bytes=8 << 30,
        board="Raspberry Pi 5 Model B Rev 1.0",
        os="Debian GNU/Linux 12",
        python="3.11.2",
        agent="0.1.0",
        runtimes={"onnxruntime": "1.23.2"},
    )


def reported(
    version: str | None = "1.0",
    *,
    model: str = "digits",
    profile: str = "raspberry-pi-5",
    generation: int = 0,
    phase: Phase = Phase.IDLE,
    target: str | None = None,
    progress: float | None = None,
    last: Outcome | None = None,
    execution: Execution | None = None,
) -> Reported:
    active = None if version is None else BundleRef(version=version, digest="ab" * 32, counter=1)
    return Reported(
        at=instant(),
        generation=generation,
        device=facts(profile),
        models={
            model: ReportedModel(
                active=active,
                phase=phase,
                target=target,
                progress=progress,
                last=last,
                port=8080,
                execution=execution,
            )
        },
    )


def outcome(kind: OutcomeKind, version: str, phase: Phase, reason: str = "") -> Outcome:
    return Outcome(kind=kind, version=version, phase=phase, reason=reason, at=instant())


def health(
    *,
    at: float | None = None,
    model: str = "digits",
    version: str = "1.0",
    p50_ms: float = 2.0,
    inferences: int = 100,
    errors: int = 0,
    temperature_c: float = 51.0,
    rss_mib: float = 60.0,
    throttled: bool = False,
) -> Health:
    return Health(
        stream="queue",
        seq=next(_SEQ),
        at=instant(at),
        host=HostMetrics(
            cpu_percent=18.0,
            ram_used_bytes=2 << 30,
            temperature_c=temperature_c,
            throttled=throttled,
            disk_free_bytes=20 << 30,
            uptime_s=93_784,
        ),
        daemon=ProcessMetrics(rss_bytes=27 << 20, cpu_percent=0.4),
        models={
            model: ModelHealth(
                version=version,
                worker=ProcessMetrics(rss_bytes=int(rss_mib * (1 << 20)), cpu_percent=12.0),
                inferences=inferences,
                errors=errors,
                p50_ms=p50_ms,
                p95_ms=p50_ms * 1.7,
                p99_ms=p50_ms * 2.6,
            )
        },
    )


def event(
    text: str,
    kind: EventKind = EventKind.PHASE,
    *,
    at: float | None = None,
    model: str | None = "digits",
    version: str | None = None,
    phase: Phase | None = None,
    ended: OutcomeKind | None = None,
) -> Event:
    return Event(
        stream="queue",
        seq=next(_SEQ),
        at=instant(at),
        kind=kind,
        text=text,
        model=model,
        version=version,
        phase=phase,
        outcome=ended,
    )
