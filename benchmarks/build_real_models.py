"""What the build makes of real models and what it costs, beside onnxruntime's own tools.

    python benchmarks/build_real_models.py [--model NAME]... [--more] [--no-peers] [--markdown]

One JSON object on stdout (or tables): the machine, and for each model the build with its default
settings for a profile of this machine with one thread, run in a process of its own; the peers
(`peers`); and one comparison of the choice with them and with float32: accuracy on the samples that
the build held out, latency turn by turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import machine
import more_models
import msgspec
import peers
import psutil
import real_models
from real_models import RealModel

import edgekit_profiles
from edgekit.build import Objective, build
from edgekit.build.accuracy import Accuracy, Truths, measure_accuracy
from edgekit.build.data import open_data
from edgekit.build.host import read_host
from edgekit.build.latency import measure_latencies
from edgekit.build.metrics import Metric, Score
from edgekit.build.model_file import ModelFile
from edgekit.build.report import Candidate, Latency, Outcome, Report
from edgekit.build.samples import Sample
from edgekit.build.split import Split
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_runtime.session import SessionOptions, open_session

_CHOICE: Final = "edgekit"
_FLOAT: Final = "float32"
_MOST_LOST: Final = 0.01
_MOST_BUILD_S: Final = 60.0
_LATENCY_S: Final = 2.0
"""For the latency of one way beside float32's."""
_FEEDS: Final = 16
_LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is wanted of a model's build, as parts of float32's."""

    latency: float | None = None
    size: float | None = None


_BARS: Final[Mapping[tuple[str, Objective], Bar]] = {
    ("efficientnet-lite0", Objective.LATENCY): Bar(latency=0.47, size=0.27),
    ("silero-vad", Objective.LATENCY): Bar(latency=0.80, size=1.00),
    ("magika", Objective.LATENCY): Bar(latency=0.40, size=0.37),
    ("minilm", Objective.LATENCY): Bar(latency=0.40, size=0.25),
    ("minilm", Objective.SIZE): Bar(size=0.16),
}


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to make the model, beside the others."""

    name: str
    seconds: float | None = None
    """To make it."""
    size_bytes: int | None = None
    score: Score | None = None
    """On what the build held out, or on all where there is too little to hold out."""
    labelled: Score | None = None
    latency: Latency | None = None
    failure: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model with one objective."""

    model: str
    objective: Objective
    build_s: float
    running_s: float
    """The float model, one thread, once over the same data (calibration and validation)."""
    peak_rss_bytes: int
    """The build's processes together; memory that they share counts for each."""
    report: Report
    ways: tuple[Way, ...]
    """float32 first, then edgekit's choice."""

    @property
    def choice(self) -> Way:
        return self.ways[1]

    @property
    def to_running(self) -> float:
        """The build's time as a multiple of that of running the float model once."""
        return self.build_s / self.running_s

    @property
    def lost(self) -> float:
        before, after = self.ways[0].score, self.choice.score
        return before.value - after.value if before and after else 0.0

    @property
    def share(self) -> float:
        return (self.choice.size_bytes or 0) / (self.ways[0].size_bytes or 1)

    def broken(self) -> list[str]:
        """The bars that do not hold."""
        bar = _BARS.get((self.model, self.objective), Bar())
        latency = self.choice.latency
        found = []
        if bar.latency is not None and latency and latency.ratio > bar.latency:
            found.append(f"latency {latency.ratio:.2f} > {bar.latency:.2f}")
        if bar.size is not None and self.share > bar.size:
            found.append(f"size {self.share:.1%} > {bar.size:.0%}")
        if self.lost > _MOST_LOST:
            found.append(f"lost {self.lost:.4f}")
        if self.build_s > _MOST_BUILD_S:
            found.append(f"build {self.build_s:.0f} s")
        return found

    def best_peer(self) -> Way | None:
        """The fastest within the loss allowed, else the most accurate."""
        able = [w for w in self.ways[2:] if w.failure is None and w.score and w.latency]
        truth = self.ways[0].score
        if not able or truth is None:
            return None
        near = [w for w in able if truth.value - w.score.value <= _MOST_LOST]  # type: ignore[union-attr]
        if near:
            return min(near, key=lambda w: w.latency.ratio)  # type: ignore[union-attr]
        return max(able, key=lambda w: w.score.value)  # type: ignore[union-attr]


def this_machine() -> Profile:
    """A profile of the machine that measures: its ISA, one thread."""
    base = edgekit_profiles.load(
        "linux-arm64" if platform.machine() == "aarch64" else "linux-x86-64"
    )
    host = read_host()
    return msgspec.structs.replace(
        base,
        name="this-machine",
        cpu=msgspec.structs.replace(
            base.cpu, core=host.core, features=tuple(sorted(host.features))
        ),
        runtimes=tuple(msgspec.structs.replace(r, threads=1) for r in base.runtimes),
    )


def _build(
    real: RealModel, objective: Objective, output: Path, sender: Connection[Any, Any]
) -> None:
    """In a process of its own: its memory is the build's."""
    began = time.perf_counter()
    result = build(real.request(this_machine(), output, objective=objective))
    seconds = time.perf_counter() - began
    sender.send((seconds, result.built[0].report, result.built[0].bundle.path))


def built(real: RealModel, objective: Objective, output: Path) -> tuple[float, int, Report, Path]:
    """Seconds, peak memory, report and bundle of a build."""
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    child = spawning.Process(target=_build, args=(real, objective, output, sender))
    child.start()
    sender.close()
    peak = 0
    while not receiver.poll(_LOOK_EVERY_S):
        peak = max(peak, _tree_bytes(child.pid or 0))
    seconds, report, bundle = receiver.recv()
    child.join()
    return seconds, peak, report, bundle


def running_s(real: RealModel) -> float:
    """Seconds to run the float model once over all samples that the build gets."""
    kind = RuntimeKind.LITERT if real.model.suffix == ".tflite" else RuntimeKind.ONNXRUNTIME
    session = open_session(kind, real.model, SessionOptions(threads=1))
    began = time.perf_counter()
    for data in (real.calibration, real.validation):
        for sample in open_data(str(data)).samples(session.inputs) if data else ():
            session.run(sample.feeds)
    return time.perf_counter() - began


def _tree_bytes(pid: int) -> int:
    found = 0
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            found += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


def compared(real: RealModel, report: Report, made: list[peers.Made]) -> tuple[Way, ...]:
    """Float32, and what was made of it, side by side."""
    kind = RuntimeKind.LITERT if real.model.suffix == ".tflite" else RuntimeKind.ONNXRUNTIME
    inputs = open_session(kind, real.model).inputs
    every = open_data(str(real.validation))
    split = Split(samples=sum(1 for _ in every.samples(inputs)))

    def held_out() -> Iterator[Sample]:
        samples = every.samples(inputs)
        return split.held_out(samples) if split.holds_out else samples

    paths = {_FLOAT: real.model, **{m.way: m.path for m in made if m.failure is None}}
    models = {name: ModelFile(path=path, kind=kind) for name, path in paths.items()}
    scores = _scores(models, Metric(name=report.metric), held_out)
    failures = {m.way: m.failure for m in made} | {n: a.failure for n, a in scores.items()}
    sound = {name: model for name, model in models.items() if failures[name] is None}
    feeds = [sample.feeds for sample in islice(held_out(), _FEEDS)]
    latencies: dict[str, Latency] = {}
    for name, model in sound.items():  # a dozen at once would leave none of them in the cache
        latencies |= measure_latencies(
            {name: model},
            baseline=models[_FLOAT],
            options={kind: SessionOptions(threads=1)},
            feeds=feeds,
            budget_s=_LATENCY_S,
        )
    labelled: dict[str, Accuracy] = {}
    if real.labelled is not None:
        photographs = open_data(str(real.labelled))
        labelled = _scores(sound, Metric(name="top1"), lambda: photographs.samples(inputs))
    seconds = {m.way: m.seconds for m in made}
    return tuple(
        Way(
            name=name,
            seconds=seconds.get(name),
            size_bytes=paths[name].stat().st_size if name in paths else None,
            score=scores[name].score if name in sound else None,
            labelled=labelled[name].score if name in labelled else None,
            latency=latencies.get(name),
            failure=failures[name],
        )
        for name in (_FLOAT, *(m.way for m in made))
    )


def _scores(
    models: Mapping[str, ModelFile],
    metric: Metric,
    samples: Callable[[], Iterator[Sample]],
) -> dict[str, Accuracy]:
    return measure_accuracy(
        models,
        metric=metric,
        samples=samples,
        truths=Truths(models[_FLOAT]),
        advance=lambda steps: None,
    )


def measured(
    make: Callable[[Path], RealModel], objectives: tuple[Objective, ...], *, with_peers: bool
) -> Iterator[Entry]:
    """Prepare a model, build it once for each objective, and compare."""
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
        home = Path(directory)
        real = make(home)
        by_peers = [
            peers.make(real, way, home)
            for way in (peers.WAYS if with_peers and real.model.suffix == ".onnx" else ())
        ]
        once_s = running_s(real)
        for objective in objectives:
            _say(f"{real.name}, {objective.value}")
            seconds, peak, report, bundle = built(real, objective, home / objective.value)
            _say(f"  {report.chosen} in {seconds:.1f} s")
            choice = peers.Made(
                way=_CHOICE, path=_model_of(bundle, home / objective.value), seconds=seconds
            )
            entry = Entry(
                model=real.name,
                objective=objective,
                build_s=seconds,
                running_s=once_s,
                peak_rss_bytes=peak,
                report=report,
                ways=compared(real, report, [choice, *by_peers]),
            )
            _say(f"  {', '.join(entry.broken()) or 'bars hold'}")
            yield entry


def _model_of(bundle: Path, directory: Path) -> Path:
    """The model of a bundle that this program built, as a file."""
    with zipfile.ZipFile(bundle) as archive:
        name = next(n for n in archive.namelist() if Path(n).suffix in (".onnx", ".ort", ".tflite"))
        path = directory / Path(name).name
        path.write_bytes(archive.read(name))
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def as_markdown(entries: list[Entry]) -> str:
    """The tables of docs/benchmarks.md, and every candidate."""
    titles = (
        "model", "chosen", "metric", "float32 -> chosen", "size", "latency", "bar", "build s",
        "to running", "MiB", "best peer", "its metric", "size", "latency",
    )  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    lines += [_summary(entry) for entry in entries]
    for entry in entries:
        lines += ["", f"{_named(entry)}: " + _seconds(entry), ""]
        lines += ["| way | metric | labelled | MB | ms | ratio | s | failure |", "| --- " * 8 + "|"]
        lines += [_way_row(way) for way in entry.ways]
        lines += ["", "| candidate | metric | dB | MB | ms | ratio | outcome |", "| --- " * 7 + "|"]
        lines += [
            _candidate_row(c) for c in entry.report.candidates if c.outcome is not Outcome.SKIPPED
        ]
    return "\n".join(lines)


def _summary(entry: Entry) -> str:
    before, after = entry.ways[:2]
    found = [
        _named(entry),
        entry.report.chosen,
        entry.report.metric,
        f"{before.score.value:.4f} -> {_score(after.score)}" if before.score else "",
        f"{entry.share:.1%}",
        _ratio(after.latency),
        "; ".join(entry.broken()) or "holds",
        f"{entry.build_s:.0f}",
        f"{entry.to_running:.1f}",
        f"{entry.peak_rss_bytes >> 20}",
    ]
    best = entry.best_peer()
    if best is None:
        return f"| {' | '.join(found)} | none | | | |"
    share = (best.size_bytes or 0) / (before.size_bytes or 1)
    found += [best.name, _score(best.score), f"{share:.1%}", _ratio(best.latency)]
    return f"| {' | '.join(found)} |"


def _named(entry: Entry) -> str:
    plain = entry.objective is Objective.LATENCY
    return entry.model if plain else f"{entry.model}, for {entry.objective.value}"


def _seconds(entry: Entry) -> str:
    stages = sorted(entry.report.seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{title} {seconds:.1f} s" for title, seconds in stages)


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    interval = "" if score.low is None else f" [{score.low:.4f}, {score.high:.4f}]"
    return f"{score.value:.4f}{interval} ({score.rows})"


def _ratio(latency: Latency | None) -> str:
    return f"{latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]" if latency else ""


def _way_row(way: Way) -> str:
    megabytes = f"{way.size_bytes / 1e6:.3f}" if way.size_bytes is not None else ""
    milliseconds = f"{way.latency.median_ms:.3f}" if way.latency else ""
    seconds = f"{way.seconds:.1f}" if way.seconds is not None else ""
    return (
        f"| {way.name} | {_score(way.score)} | {_score(way.labelled)} | {megabytes} "
        f"| {milliseconds} | {_ratio(way.latency)} | {seconds} | {way.failure or ''} |"
    )


def _candidate_row(candidate: Candidate) -> str:
    score, latency = candidate.held_out or candidate.score, candidate.latency
    noise = f"{candidate.closeness_db:.1f}" if candidate.closeness_db is not None else ""
    return (
        f"| {candidate.title} | {_score(score)} | {noise} "
        f"| {(candidate.size_bytes or 0) / 1e6:.3f} "
        f"| {f'{latency.median_ms:.3f}' if latency else ''} | {_ratio(latency)} "
        f"| {candidate.outcome.value}: {candidate.reason} |"
    )


def main() -> None:
    known = {**real_models.MODELS, **more_models.MODELS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(known))
    parser.add_argument("--more", action="store_true", help="models of more_models.txt, too")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    entries: list[Entry] = []
    for name in asked.model or (known if asked.more else real_models.MODELS):
        barred = tuple(objective for model, objective in _BARS if model == name)
        entries += measured(
            known[name], barred or (Objective.LATENCY,), with_peers=not asked.no_peers
        )
    if asked.markdown:
        print(as_markdown(entries))
    else:
        machine.emit(msgspec.to_builtins(entries))


if __name__ == "__main__":
    main()
