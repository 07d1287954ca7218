"""What calibration costs beside running the float model: time and memory, and its peers.

    python benchmarks/calibration.py [--samples 500] [--threads N] [--rounds 3] [--markdown]
    python benchmarks/calibration.py --short        # the digits model, for CI

EfficientNet-Lite0 and crops of photographs. Each way runs in a process of its own, by turns within
a round; all stream the same samples from the same file. Memory is the peak of the process and its
children together, looked at every so often, pages that they share counted once (PSS, the kernel's
proportional set size); CPU time is theirs, too.
"Running" is the time inside the runtime of the plain float model, reading not counted; the ratio of
a way is its time per sample to that of the same round, "streaming" the same with the reading. On a
machine that does other work, believe the ratio of CPU time. onnxruntime's calibraters get fewer
samples, since their time is proportional to them and the memory of the last two is, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import machine
import numpy as np
import onnx
import psutil
import real_models

from edgekit.build.data import Data, open_data
from edgekit.build.material import Material, gather
from edgekit.build.progress import Silent
from edgekit.build.ranges import calibrate
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.calibration.estimators import OF_STATISTICS, Estimator
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_converters.calibration.watcher import Watcher, plan_probes
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.sources import open_source
from edgekit_runtime.session import SessionOptions, open_session

DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"
_SHORT_SAMPLES: Final = 16
_IN_TURN: Final = "sample by sample"
_LOOK_S: Final = 0.1


class _Family:
    """This process and its children, looked at all the time: those that are gone count."""

    def __init__(self) -> None:
        self._peak_mib = 0.0
        self._cpu: dict[int, float] = {}
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def __enter__(self) -> _Family:
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watching.join()

    def peak_mib(self) -> float:
        self._look()
        return self._peak_mib

    def cpu_s(self) -> float:
        self._look()
        return time.process_time() + sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        myself, held_mib = psutil.Process(), 0.0
        for process in (myself, *myself.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                held_mib += process.memory_full_info().pss / 2**20
                if process != myself:
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
        self._peak_mib = max(self._peak_mib, held_mib)


class _Setting:
    """A model that is ready to be calibrated, and the first of its data."""

    def __init__(self, model: Path, data: Path, count: int, scratch: Path) -> None:
        self.scratch, self.family, self.began_cpu_s = scratch, _Family(), 0.0
        whole = open_data(str(data))
        held = whole.count or count

        def rows() -> Iterator[Mapping[str, np.ndarray]]:
            for index, row in enumerate(whole.rows()):
                if index == count:
                    return
                yield row

        self.data = Data(title=str(data), rows=rows, count=min(count, held))
        source = open_source(model, scratch=scratch)
        self.material: Material = gather(source, self.data, None, normalizes=True, scratch=scratch)
        self.threads = len(os.sched_getaffinity(0))

    @property
    def normalized(self) -> Path:
        return self.material.normalized.path

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        for sample in self.data.samples(self.material.source.signature.inputs):
            yield sample.feeds


def float_once(setting: _Setting) -> dict[str, float]:
    session = open_session(
        RuntimeKind.ONNXRUNTIME, setting.normalized, SessionOptions(threads=setting.threads)
    )
    running = running_cpu = 0.0
    began = time.perf_counter()
    for feeds in setting.feeds():
        started, started_cpu = time.perf_counter(), time.process_time()
        session.run(feeds)
        running += time.perf_counter() - started
        running_cpu += time.process_time() - started_cpu
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "running_s": running, "running_cpu_s": running_cpu}


def _edgekit(estimators: tuple[Estimator, ...]) -> Callable[[_Setting], dict[str, float]]:
    def run(setting: _Setting) -> dict[str, float]:
        with isolation.Workshop() as workshop:
            workshop.run("warming up", "builtins:bool", {}, isolation.Limits())  # a build's is warm
            setting.began_cpu_s = setting.family.cpu_s()
            began = time.perf_counter()
            calibrate(
                setting.material,
                estimators,
                workshop,
                scratch=setting.scratch,
                progress=Silent(),
            )
            return {"seconds": time.perf_counter() - began}

    return run


def sample_by_sample(setting: _Setting) -> dict[str, float]:
    """CPU time of a pass to that of running, in one process: the float model and both ways see each
    sample in turn, so that a clock which swings does not tell them apart. Opening is left out."""
    with contextlib.ExitStack() as stack:
        opened = open_session(
            RuntimeKind.ONNXRUNTIME, setting.normalized, SessionOptions(threads=setting.threads)
        )
        stack.callback(opened.close)
        runs: dict[str, Callable[[Mapping[str, np.ndarray]], object]] = {"running": opened.run}
        tensors = select_static(onnx.load_model(setting.normalized), wide=True).observed
        for way, counts in (("minmax", False), ("all", True)):
            plan = plan_probes(
                setting.normalized, tensors, next(setting.feeds()), threads=setting.threads,
                samples=counts,
            )  # fmt: skip
            watcher = Watcher(
                setting.normalized, plan, threads=setting.threads, scratch=setting.scratch
            )
            stack.callback(watcher.close)
            seen = {name: TensorStatistics(counts=counts) for name in tensors}
            runs[way] = partial(watcher.enter, statistics=seen)
        spent: dict[str, list[float]] = {way: [] for way in runs}
        for feeds in setting.feeds():
            for way, run in runs.items():
                began = time.process_time()
                run(feeds)
                spent[way].append(time.process_time() - began)
    whole = {way: statistics.median(seconds) for way, seconds in spent.items()}
    return {way: whole[way] / whole["running"] for way in ("minmax", "all")}


def _onnxruntime(method: str) -> Callable[[_Setting], dict[str, float]]:
    def run(setting: _Setting) -> dict[str, float]:
        import onnxruntime as ort
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._feeds = setting.feeds()

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self._feeds, None)

        began = time.perf_counter()
        calibrator = create_calibrator(
            setting.normalized,
            augmented_model_path=str(setting.scratch / "augmented.onnx"),
            calibrate_method=CalibrationMethod[method],
        )
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = setting.threads
        calibrator.infer_session = ort.InferenceSession(
            calibrator.augmented_model_path, settings, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()
        return {"seconds": time.perf_counter() - began}

    return run


WAYS: Final[Mapping[str, tuple[Callable[[_Setting], dict[str, float]], int | None]]] = {
    "float model": (float_once, None),
    "edgekit, MinMax": (_edgekit((Estimator.MINMAX,)), None),
    "edgekit, all estimators": (_edgekit(OF_STATISTICS), None),
    "onnxruntime MinMax": (_onnxruntime("MinMax"), 50),
    "onnxruntime Percentile": (_onnxruntime("Percentile"), 20),
    "onnxruntime Entropy": (_onnxruntime("Entropy"), 20),
}
"""Each way, and how many samples it gets at most."""


def measure(way: str, model: Path, data: Path, count: int) -> dict[str, Any]:
    """One way, in this process."""
    if way == _IN_TURN:
        with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
            return sample_by_sample(_Setting(model, data, count, Path(directory)))
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
        setting = _Setting(model, data, count, Path(directory))
        with setting.family as family:
            setting.began_cpu_s = family.cpu_s()
            figures = WAYS[way][0](setting)
            figures["cpu_s"] = family.cpu_s() - setting.began_cpu_s
            figures["peak_mib"] = family.peak_mib()
    return figures


def in_a_child(way: str, model: Path, data: Path, count: int, threads: int) -> dict[str, Any]:
    """One way, in a process that may use so many cores."""
    command = [sys.executable, __file__, "--way", way, "--samples", str(count)]
    command += ["--threads", str(threads), "--files", str(model), str(data)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )  # its errors are seen where ours are
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(model: Path, data: Path, *, samples: int, threads: int, rounds: int) -> list[Any]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    counts = {way: min(samples, most or samples) for way, (_, most) in WAYS.items()}
    for number in range(rounds):
        for way, count in counts.items():
            print(f"round {number + 1}: {way}", file=sys.stderr)
            found[way].append(in_a_child(way, model, data, count, threads))

    def ratio(way: str, figure: str, to: str) -> float:
        """Median over the rounds, each against its own float model."""
        pairs = zip(found[way], found["float model"], strict=True)
        return statistics.median(f[figure] / counts[way] / (b[to] / samples) for f, b in pairs)

    return [
        {
            "way": way,
            "samples": count,
            "ms_per_sample": statistics.median(f["seconds"] / count for f in found[way]) * 1e3,
            "ratio_to_running": ratio(way, "seconds", "running_s"),
            "ratio_to_streamed": ratio(way, "seconds", "seconds"),
            "cpu_ratio_to_running": ratio(way, "cpu_s", "running_cpu_s"),
            "peak_mib": max(f["peak_mib"] for f in found[way]),
        }
        for way, count in counts.items()
    ]


def as_markdown(rows: list[Any]) -> str:
    lines = [
        "| way | samples | ms each | to running | to streaming | CPU to running | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['way']} | {r['samples']} | {r['ms_per_sample']:.1f} | {r['ratio_to_running']:.2f} "
        f"| {r['ratio_to_streamed']:.2f} | {r['cpu_ratio_to_running']:.2f} "
        f"| {r['peak_mib']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--way", choices=[*WAYS, _IN_TURN], help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.threads])
        print(json.dumps(measure(chosen.way, *chosen.files, chosen.samples)))
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
        home = Path(directory)
        if chosen.short:
            model, data = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
            chosen.samples, chosen.rounds = _SHORT_SAMPLES, 1
        else:
            real = real_models.efficientnet(home, crops=chosen.samples)
            assert real.calibration is not None
            model, data = real.model, real.calibration
        rows = compare(
            model, data, samples=chosen.samples, threads=chosen.threads, rounds=chosen.rounds
        )
        in_turn = in_a_child(_IN_TURN, model, data, chosen.samples, chosen.threads)
    if chosen.markdown:
        print(as_markdown(rows))
        print(
            "\nSample by sample in one process, CPU time to running: "
            f"MinMax {in_turn['minmax']:.2f}, all estimators {in_turn['all']:.2f}"
        )
    else:
        machine.emit({"threads": chosen.threads, "ways": rows, "sample_by_sample": in_turn})


if __name__ == "__main__":
    main()
