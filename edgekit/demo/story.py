"""What the demo tells, and what must come true for it to end well.

Invariant: nothing is told that did not happen; every line comes from what devices reported or live
requests saw, and each release's ending is compared with the expected one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edgekit.build import BuildRequest, Objective, build
from edgekit.build.host import read_host
from edgekit.demo.broker import BrokerKind
from edgekit.demo.devices import DEVICES, device_profiles
from edgekit.demo.releases import freeze_batch, move_classes, replace_model
from edgekit.demo.stage import MODEL, Stage, open_stage
from edgekit.hub.orders import start_rollout
from edgekit.release.keys import PrivateKey, load_key, new_key
from edgekit_contract.errors import Refused
from edgekit_contract.messages import EventKind, OutcomeKind, Phase
from edgekit_contract.profile import parse_profile

__all__ = ["Chapter", "DemoResult", "WentWrong", "digits_files", "run_demo"]

Tell = Callable[[str], None]

_CHAPTER_S: Final = 90.0
"""A chapter that has not ended by then went wrong."""
_POLL_S: Final = 0.25
_SEARCH_S: Final = 8.0


class WentWrong(Refused):
    """The demo did not go as told."""


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """A release, and how it must end on every device."""

    version: str
    about: str
    ending: OutcomeKind
    phase: Phase


_PLOT: Final = (
    _Plot(
        version="1.0",
        about="the model as it was trained, float32",
        ending=OutcomeKind.COMMITTED,
        phase=Phase.COMMIT,
    ),
    _Plot(
        version="1.1",
        about="a re-export with its classes mixed up: golden vectors fail",
        ending=OutcomeKind.REFUSED,
        phase=Phase.WARMUP,
    ),
    _Plot(
        version="1.2",
        about="a re-export with a frozen batch: golden vectors pass, live requests fail",
        ending=OutcomeKind.ROLLED_BACK,
        phase=Phase.PROBATION,
    ),
    _Plot(
        version="1.3",
        about="the smallest variant within one point of accuracy",
        ending=OutcomeKind.COMMITTED,
        phase=Phase.COMMIT,
    ),
)


@dataclass(kw_only=True)
class Chapter:
    """A release and what became of it."""

    version: str
    about: str
    endings: dict[str, str] = field(default_factory=dict)
    """Device to how it ended there."""
    phases: dict[str, str] = field(default_factory=dict)
    """Device to the phase in which that was decided."""
    served: int = 0
    """Live requests answered by this version."""
    failed: int = 0
    """Live requests that failed while it was rolled out."""
    seconds: float = 0.0
    """From its rollout to its end on the last device."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    chapters: Sequence[Chapter]
    accuracy: float
    """Of all live answers, against the labels."""
    dashboard: str
    directory: Path
    seconds: float


def digits_files() -> Mapping[str, Path]:
    """Model and data of the example: in the wheel beside this module, else in the checkout."""
    here = Path(__file__).parent
    for folder in (here / "digits", here.parents[1] / "examples" / "digits"):
        if (folder / "digits.onnx").is_file():
            names = ("digits.onnx", "calibration.npz", "validation.npz")
            return {name: folder / name for name in names}
    raise WentWrong("the digits example is not installed: install edgekit anew.")


def run_demo(
    directory: Path,
    tell: Tell,
    *,
    broker: BrokerKind = BrokerKind.AUTO,
    linger: Callable[[DemoResult], None] | None = None,
) -> DemoResult:
    """Play the whole demo below `directory`; `linger` is called before the curtain falls.

    Errors: `WentWrong`, `StageBroken`, `NoBroker`.
    """
    began = time.monotonic()
    files = digits_files()
    new_key(directory / "build.key", None)
    key = load_key(directory / "build.key", None)
    tell("Building two releases of a digit classifier for two profiles ...")
    profiles = device_profiles(read_host())
    bundles = _build_releases(directory / "bundles", files, profiles, key, tell)
    tell("Making a fleet: certificate authorities, TUF repository, broker configuration ...")
    with open_stage(directory, broker, profiles) as stage:
        chapters = _play(stage, bundles, files, tell)
        answers = list(stage.traffic.values())
        images = sum(traffic.images for traffic in answers)
        result = DemoResult(
            chapters=chapters,
            accuracy=sum(traffic.correct for traffic in answers) / max(images, 1),
            dashboard=stage.dashboard,
            directory=directory,
            seconds=time.monotonic() - began,
        )
        if linger is not None:
            linger(result)
        return result


def _build_releases(
    out: Path,
    files: Mapping[str, Path],
    profiles: Mapping[str, bytes],
    key: PrivateKey,
    tell: Tell,
) -> dict[str, list[Path]]:
    """Bundles by version: 1.0 and 1.3 built, 1.1 and 1.2 made from 1.0 the way mistakes are."""
    parsed = (parse_profile(text, source=device) for device, text in profiles.items())
    kinds = tuple({profile.name: profile for profile in parsed}.values())
    bundles: dict[str, list[Path]] = {}
    for version, recipes, objective in (
        ("1.0", ("float32*",), Objective.ACCURACY),
        ("1.3", ("int8-*/per-channel*",), Objective.SIZE),
    ):
        result = build(
            BuildRequest(
                model=files["digits.onnx"],
                profiles=kinds,
                name=MODEL,
                version=version,
                output=out,
                calibration=str(files["calibration.npz"]),
                validation=str(files["validation.npz"]),
                recipes=recipes,
                objective=objective,
                search_time_s=_SEARCH_S,
                key=key,
            )
        )
        bundles[version] = [built.bundle.path for built in result.built]
        for built in result.built:
            size_kb = built.bundle.size_bytes / 1000
            tell(f"  {built.bundle.path.name}: {built.report.chosen}, {size_kb:.0f} kB")
    for version, spoil in (("1.1", move_classes), ("1.2", freeze_batch)):
        model = out / f"{version}.onnx"
        bundles[version] = []
        for bundle in bundles["1.0"]:
            spoiled = out / bundle.name.replace("-1.0-", f"-{version}-")
            spoil(bundle, model)
            replace_model(bundle, model, spoiled, version=version, key=key)
            bundles[version].append(spoiled)
    return bundles


def _play(
    stage: Stage, bundles: Mapping[str, Sequence[Path]], files: Mapping[str, Path], tell: Tell
) -> list[Chapter]:
    broker = stage.start_broker()
    tell(f"Broker: {broker.title} ({broker.remark}).")
    stage.start_hub()
    tell(f"Hub: dashboard at {stage.dashboard}")
    stage.start_agents()
    _await(stage, lambda: stage.reported().keys() >= set(DEVICES), "the agents to report")
    tell(f"Agents: {', '.join(DEVICES)} have enrolled and reported.")
    targets_key = load_key(stage.fleet.tuf_targets_key, None)
    told: set[tuple[str, str, int]] = set()
    chapters = []
    for plot in _PLOT:
        tell("")
        tell(f"Release {plot.version}: {plot.about}.")
        now = datetime.now(timezone.utc)
        repository = stage.fleet.repository
        repository.add_release(bundles[plot.version], targets_key=targets_key, now=now)
        start_rollout(
            stage.store, repository, model=MODEL, version=plot.version, selector="all", now=now
        )
        chapters.append(_follow(stage, plot, files["validation.npz"], tell, told))
    return chapters


def _follow(
    stage: Stage, plot: _Plot, samples: Path, tell: Tell, told: set[tuple[str, str, int]]
) -> Chapter:
    """Watch one rollout to its end on every device. Errors: `WentWrong`."""
    chapter = Chapter(version=plot.version, about=plot.about)
    steps: dict[str, list[str]] = {device: [] for device in DEVICES}
    began = time.monotonic()
    failed_before = _failed(stage)

    def ended() -> bool:
        for device, _, event in reversed(stage.store.records.events(None, limit=200, before=None)):
            mark = (device, event.stream, event.seq)
            if mark in told or event.version != plot.version or device not in steps:
                continue
            told.add(mark)
            if event.kind is EventKind.PHASE and event.phase is not None:
                steps[device].append(event.phase.value)
            elif event.kind is EventKind.OUTCOME and event.outcome is not None:
                chapter.endings[device] = event.outcome.value
                chapter.phases[device] = event.phase.value if event.phase is not None else ""
                text = "" if event.outcome is OutcomeKind.COMMITTED else f": {event.text}"
                tell(f"  {device:<9} {' > '.join(steps[device])}")
                tell(f"  {'':<9} {event.outcome.value}{text}")
                if (event.outcome, event.phase) != (plot.ending, plot.phase):
                    raise WentWrong(
                        f"{plot.version} ended as {event.outcome.value} in "
                        f"{chapter.phases[device]} on {device}, not {plot.ending.value} in "
                        f"{plot.phase.value}: see {stage.directory / 'logs'}."
                    )
        stage.start_traffic(samples)
        return chapter.endings.keys() == steps.keys() and stage.traffic.keys() == steps.keys()

    _await(stage, ended, f"{plot.version} to end on every device")
    chapter.seconds = time.monotonic() - began
    answers = stage.traffic.values()
    chapter.served = sum(traffic.answered[plot.version] for traffic in answers)
    chapter.failed = _failed(stage) - failed_before
    _check_served(plot, chapter)
    tell(f"  {chapter.served} live requests answered by {plot.version}, {chapter.failed} failed.")
    return chapter


def _check_served(plot: _Plot, chapter: Chapter) -> None:
    if plot.ending is OutcomeKind.REFUSED and chapter.served:
        raise WentWrong(f"{plot.version} was refused, and yet answered {chapter.served} requests.")
    if plot.ending is not OutcomeKind.ROLLED_BACK and chapter.failed:
        raise WentWrong(f"{chapter.failed} live requests failed while {plot.version} rolled out.")


def _failed(stage: Stage) -> int:
    return sum(traffic.failed.total() for traffic in stage.traffic.values())


def _await(stage: Stage, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _CHAPTER_S
    while not condition():
        stage.check()
        if time.monotonic() > deadline:
            raise WentWrong(
                f"waited {_CHAPTER_S:.0f} s for {what}: see {stage.directory / 'logs'}."
            )
        time.sleep(_POLL_S)
