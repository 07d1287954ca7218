"""What a worker counts. Pure: times and randomness come from outside.

Invariant: every request to infer counts once: as an inference (answered with outputs), a reject
(the clients' fault: a wrong request, or one too many) or an error (the model's or the worker's:
enough of them on probation return the device to the bundle before). Latency
runs from a request's last byte to its answer, waiting included; percentiles are exact up to
`WINDOW` requests between two snapshots, and of a uniform sample of that size beyond.
"""

from __future__ import annotations

import random
import threading
from array import array
from dataclasses import dataclass
from typing import Final

__all__ = ["WINDOW", "Counters", "Snapshot", "percentile"]

WINDOW: Final = 16_384
_MS: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    inferences: int
    errors: int
    rejected: int
    p50_ms: float | None
    """Of the inferences since the snapshot before, as are the next two; None where none was."""
    p95_ms: float | None
    p99_ms: float | None


class Counters:
    """Counted by the server's thread, read by the control thread."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._lock = threading.Lock()
        self._inferences = self._errors = self._rejected = 0
        self._latencies_s = array("d")
        self._seen = 0

    def inferred(self, latency_s: float) -> None:
        with self._lock:
            self._inferences += 1
            self._seen += 1
            if len(self._latencies_s) < WINDOW:
                self._latencies_s.append(latency_s)
            elif (place := self._chance.randrange(self._seen)) < WINDOW:
                self._latencies_s[place] = latency_s  # Vitter's algorithm R

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def rejected(self) -> None:
        with self._lock:
            self._rejected += 1

    def snapshot(self) -> Snapshot:
        """The counts so far and the latencies of the window, which begins anew."""
        with self._lock:
            window, self._latencies_s, self._seen = self._latencies_s, array("d"), 0
            inferences, errors, rejected = self._inferences, self._errors, self._rejected
        ranked = sorted(window)
        return Snapshot(
            inferences=inferences,
            errors=errors,
            rejected=rejected,
            p50_ms=percentile(ranked, 50),
            p95_ms=percentile(ranked, 95),
            p99_ms=percentile(ranked, 99),
        )


def percentile(ranked_s: list[float], percent: int) -> float | None:
    """The nearest-rank percentile of sorted seconds, in ms; None of nothing."""
    if not ranked_s:
        return None
    return ranked_s[-(-len(ranked_s) * percent // 100) - 1] * _MS
