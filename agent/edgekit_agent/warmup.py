"""WARMUP: prove a staged bundle on this device before anything is switched to it.

    python -m edgekit_agent.warmup --bundle DIR --digest SHA256 [--max-rss-bytes N]
                                   [--max-latency-ms X] [--bench-s SECONDS]

Prints one `WarmupReport` as JSON; exits 0 where the bundle passed, else 1. Invariant: there is a
report however the model behaves, short of hanging (the caller's timeout ends that), for it is
tried in a child: one that crashes is named by its signal, one that takes too much memory is
stopped. Address-space limits count what a runtime reserves and never touches, so resident memory
is watched instead, and its exact peak is judged at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgekit_agent.control import BenchFigures, WarmupReport
from edgekit_contract.errors import EdgekitError
from edgekit_contract.messages import cut

if TYPE_CHECKING:
    import numpy as np

    from edgekit_contract.manifest import TensorSpec
    from edgekit_contract.messages import Execution
    from edgekit_runtime.session import Session, Tensors

__all__ = ["main", "prove"]

_WATCH_S: Final = 0.01
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = "1000"
"""Where memory runs out the kernel takes this child before anything else."""

_CRASHES: Final = {
    signal.SIGILL: "the runtime or the model needs an instruction that this CPU lacks",
    signal.SIGKILL: "the kernel killed it, most likely for lack of memory",
}


def prove(
    directory: Path, digest: str, *, max_latency_ms: float | None, bench_s: float | None = None
) -> WarmupReport:
    """Verify, load and run the golden vectors here; time runs of them for `bench_s`, if given.

    `rss_bytes` is for the caller to fill in.
    """
    from edgekit_agent.worker import load
    from edgekit_runtime.golden import check_golden, read_golden
    from edgekit_runtime.timing import time_runs

    try:
        loaded = load(directory, digest)
        manifest = loaded.bundle.manifest
        vectors = read_golden(
            loaded.bundle.read(manifest.golden.path),
            manifest.golden,
            manifest.inputs,
            manifest.outputs,
        )
    except EdgekitError as error:
        return WarmupReport(passed=False, reason=cut(str(error)))
    timed = _Timed(loaded.session)
    mismatch = check_golden(timed, manifest.golden, vectors)
    latency_ms = statistics.median(timed.latencies_s) * 1_000 if timed.latencies_s else None
    reason = ""
    if mismatch is not None:
        reason = f"{mismatch}."
    elif max_latency_ms is not None and latency_ms is not None and latency_ms > max_latency_ms:
        reason = f"an inference takes {latency_ms:.3g} ms here, {max_latency_ms:.3g} are allowed."
    figures = None
    if bench_s is not None and not reason:
        timing = time_runs(loaded.session, [vector.inputs for vector in vectors], budget_s=bench_s)
        figures = msgspec.convert(timing, BenchFigures, from_attributes=True)
    return WarmupReport(
        passed=not reason,
        reason=cut(reason),
        load_s=loaded.load_s,
        latency_ms=latency_ms,
        execution=loaded.session.execution,
        figures=figures,
    )


class _Timed:
    """A session that notes how long each run took."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.latencies_s: list[float] = []

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._session.outputs

    @property
    def execution(self) -> Execution:
        return self._session.execution

    def run(self, feeds: Tensors) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        values = self._session.run(feeds)
        self.latencies_s.append(time.perf_counter() - started)
        return values

    def close(self) -> None:
        self._session.close()


def _supervise(child: int, pipe: int, *, max_rss_bytes: int | None) -> WarmupReport:
    """Watch the child until its report is there or it may not go on."""
    text, too_large = b"", False
    while not too_large:
        readable, _, _ = select.select([pipe], [], [], _WATCH_S if max_rss_bytes else None)
        if readable:
            piece = os.read(pipe, 65_536)
            if not piece:
                break
            text += piece
        elif max_rss_bytes is not None and _resident_bytes(child) > max_rss_bytes:
            too_large = True
            os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    rss_bytes = usage.ru_maxrss * 1024
    if max_rss_bytes is not None and (too_large or rss_bytes > max_rss_bytes):
        return WarmupReport(
            passed=False,
            reason=f"it takes {_mib(rss_bytes)} of memory{' and more' if too_large else ''}, "
            f"{_mib(max_rss_bytes)} are allowed.",
            rss_bytes=rss_bytes,
        )
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        cause = _CRASHES.get(number, "the runtime crashed on this model")
        return WarmupReport(passed=False, reason=f"{cause} ({number.name}).", rss_bytes=rss_bytes)
    try:
        report = msgspec.json.decode(text, type=WarmupReport)
    except msgspec.DecodeError:
        return WarmupReport(
            passed=False,
            reason=f"the warm-up ended with code {os.waitstatus_to_exitcode(status)}.",
            rss_bytes=rss_bytes,
        )
    return msgspec.structs.replace(report, rss_bytes=rss_bytes)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"


def _end_with_parent() -> None:
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _become_child(parent: int) -> None:
    _end_with_parent()
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="edgekit_agent.warmup")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--max-rss-bytes", type=int)
    parser.add_argument("--max-latency-ms", type=float)
    parser.add_argument("--bench-s", type=float)
    given = parser.parse_args(arguments)
    _end_with_parent()
    read_end, write_end = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_child(parent)
        os.close(read_end)
        try:
            report = prove(
                given.bundle,
                given.digest,
                max_latency_ms=given.max_latency_ms,
                bench_s=given.bench_s,
            )
        except Exception as error:  # MemoryError, or what a runtime's module did not foresee
            report = WarmupReport(passed=False, reason=cut(f"{type(error).__name__}: {error}."))
        os.write(write_end, msgspec.json.encode(report))
        return 0
    os.close(write_end)
    report = _supervise(child, read_end, max_rss_bytes=given.max_rss_bytes)
    os.close(read_end)
    print(msgspec.json.encode(report).decode(), flush=True)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
