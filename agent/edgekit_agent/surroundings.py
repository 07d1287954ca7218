"""What an update machine has around it: the record, knobs, clock, and the daemon's calls."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit_agent.clock import Clock, latest
from edgekit_agent.config import Knobs
from edgekit_agent.control import Assignment, BenchAssignment
from edgekit_agent.record import RecordFile
from edgekit_agent.slots import Active, Slot
from edgekit_agent.updater_process import UpdaterProcess
from edgekit_contract.messages import Bench, DeviceFacts

__all__ = ["Surroundings"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a machine needs of the daemon."""

    directory: Path
    record: RecordFile
    knobs: Knobs
    clock: Clock
    randomness: random.Random
    emit: Callable[..., None]
    """Store an event: `emit(kind, text, model=..., version=..., phase=..., outcome=...)`."""
    changed: Callable[[], None]
    """What is reported has changed."""
    spawn_updater: Callable[..., UpdaterProcess]
    facts: Callable[[], DeviceFacts | None]

    def assignment(
        self, model: str, version: str, *, slot: Slot, active: Active | None, damaged: bool
    ) -> Assignment:
        """What an updater is told. `damaged`: what is active must be fetched again."""
        facts, record, knobs = self.facts(), self.record.value, self.knobs
        if facts is None:
            raise RuntimeError("nothing is known of the device yet")
        bar, clock_now = record.barred.get(model), self.clock.now()
        now = latest(clock_now, record.time_floor)
        return Assignment(
            directory=str(self.directory),
            model=model,
            version=version,
            slot=slot.value,
            active_slot=active.slot.value if active else None,
            active_digest=active.digest if active and not damaged else None,
            barred_digest=bar.digest if bar else None,
            barred_reason=bar.reason if bar else "",
            counter_floor=record.counters.get(model, 0),
            versions=record.versions,
            now=now,
            clock_behind=clock_now < now,
            facts=facts,
            max_rss_bytes=knobs.max_rss_mib << 20 if knobs.max_rss_mib else None,
            max_latency_ms=knobs.max_latency_ms,
            max_fetch_bytes=knobs.max_fetch_mib << 20 if knobs.max_fetch_mib is not None else None,
            window=knobs.window,
            request_timeout_s=knobs.request_timeout_s,
            stall_timeout_s=knobs.stall_s,
            warmup_timeout_s=knobs.warmup_s,
        )

    def bench_assignment(self, order: Bench) -> BenchAssignment | None:
        """What the bencher is told; None while nothing is known of the device."""
        facts, record, knobs = self.facts(), self.record.value, self.knobs
        if facts is None:
            return None
        clock_now = self.clock.now()
        now = latest(clock_now, record.time_floor)
        return BenchAssignment(
            directory=str(self.directory),
            digest=order.digest,
            budget_s=order.budget_s,
            versions=record.versions,
            now=now,
            clock_behind=clock_now < now,
            facts=facts,
            max_rss_bytes=knobs.max_rss_mib << 20 if knobs.max_rss_mib else None,
            max_fetch_bytes=knobs.max_fetch_mib << 20 if knobs.max_fetch_mib is not None else None,
            window=knobs.window,
            request_timeout_s=knobs.request_timeout_s,
            stall_timeout_s=knobs.stall_s,
            warmup_timeout_s=knobs.warmup_s,
        )
