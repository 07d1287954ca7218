"""Metrics of the host and of the agent's processes. What cannot be read is None."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

from edgekit_agent import storage
from edgekit_agent.config import ThermalPaths
from edgekit_agent.reporting import fitting_health
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.worker_process import Launch
from edgekit_contract.messages import Health, HostMetrics, ModelHealth, ProcessMetrics

__all__ = ["HostMeter", "ProcessMeter", "Telemetry"]

_THROTTLED_NOW: Final = 0xF
"""The low four bits say what is so now, the higher ones what once was."""
_DEFAULT_TEMPERATURE: Final = ("/sys/class/thermal/thermal_zone*/temp",)
_SANE_C: Final = (-60.0, 200.0)


class Telemetry:
    """Everything that a health message says."""

    def __init__(self, directory: Path, thermal: ThermalPaths) -> None:
        self._host, self._processes = HostMeter(directory, thermal), ProcessMeter()

    def health(
        self, models: Mapping[str, Supervisor], *, updater: int | None, at: datetime
    ) -> Health:
        """Measure now. `models`: those that are to serve; `updater`: its process id."""
        ours, updating = os.getpid(), _family(updater) if updater is not None else ()
        pids = {name: [workers.current.pid] for name, workers in models.items() if workers.current}
        health = Health(
            stream="",
            seq=0,
            at=at,
            host=self._host.measure(),
            daemon=self._processes.measure(ours),
            updater=self._processes.sum(updating),
            models={
                name: self._model(workers, launch, self._processes.sum(pids.get(name, ())))
                for name, workers in models.items()
                if (launch := workers.launch) is not None
            },
        )
        self._processes.keep({ours, *updating, *(pid for found in pids.values() for pid in found)})
        return fitting_health(health)

    @staticmethod
    def _model(workers: Supervisor, launch: Launch, process: ProcessMetrics | None) -> ModelHealth:
        worker = workers.current
        stats = worker.stats if worker is not None else None
        return ModelHealth(
            version=launch.version,
            worker=process,
            inferences=stats.inferences if stats else 0,
            errors=stats.errors if stats else 0,
            rejected=stats.rejected if stats else 0,
            restarts=workers.restarts,
            p50_ms=stats.p50_ms if stats else None,
            p95_ms=stats.p95_ms if stats else None,
            p99_ms=stats.p99_ms if stats else None,
        )


class HostMeter:
    """The host, with CPU use over the time since the measurement before."""

    def __init__(self, directory: Path, thermal: ThermalPaths) -> None:
        self._directory, self._thermal = directory, thermal
        psutil.cpu_percent(None)

    def measure(self) -> HostMetrics:
        memory = psutil.virtual_memory()
        return HostMetrics(
            cpu_percent=psutil.cpu_percent(None),
            ram_used_bytes=memory.total - memory.available,
            temperature_c=_temperature_c(self._thermal.temperature or _DEFAULT_TEMPERATURE),
            throttled=_throttled(self._thermal.throttled),
            disk_free_bytes=storage.free_bytes(self._directory),
            uptime_s=max(0, int(time.time() - psutil.boot_time())),
        )


class ProcessMeter:
    """Processes by id, each with its CPU use over the time since the measurement before."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def measure(self, pid: int) -> ProcessMetrics | None:
        """None where the process is gone."""
        try:
            process = self._known.get(pid)
            first = process is None
            if process is None:
                process = self._known[pid] = psutil.Process(pid)
            with process.oneshot():
                cpu_percent = process.cpu_percent(None)
                rss_bytes = process.memory_info().rss
        except psutil.Error:
            self._known.pop(pid, None)
            return None
        return ProcessMetrics(rss_bytes=rss_bytes, cpu_percent=None if first else cpu_percent)

    def sum(self, pids: Iterable[int]) -> ProcessMetrics | None:
        """Of several processes together; None where all are gone."""
        found = [metrics for pid in pids if (metrics := self.measure(pid)) is not None]
        if not found:
            return None
        shares = [m.cpu_percent for m in found if m.cpu_percent is not None]
        return ProcessMetrics(
            rss_bytes=sum(metrics.rss_bytes for metrics in found),
            cpu_percent=sum(shares) if shares else None,
        )

    def keep(self, pids: Iterable[int]) -> None:
        """Forget every process but these: a process id comes round again."""
        wanted = set(pids)
        self._known = {pid: process for pid, process in self._known.items() if pid in wanted}


def _family(pid: int) -> list[int]:
    """A process and all that it has started: the updater's warm-up is the larger of the two."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def _temperature_c(patterns: Iterable[str]) -> float | None:
    found = []
    for path in _matches(patterns):
        try:
            celsius = int(_first_word(path)) / 1000
        except (OSError, ValueError, IndexError):
            continue
        if _SANE_C[0] < celsius < _SANE_C[1]:
            found.append(celsius)
    return max(found, default=None)


def _throttled(patterns: Iterable[str]) -> bool | None:
    for path in _matches(patterns):
        try:
            return bool(int(_first_word(path), 16) & _THROTTLED_NOW)
        except (OSError, ValueError, IndexError):
            continue
    return None


def _matches(patterns: Iterable[str]) -> list[str]:
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]  # noqa: PTH207


def _first_word(path: str) -> str:
    return Path(path).read_text(encoding="ascii", errors="replace").split()[0]
