"""Rollouts: the list of them, and one with its waves, phases, failures and orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from edgekit.hub.rollout import Action, RolloutStatus, Standing
from edgekit.web import display
from edgekit.web.display import Tone
from edgekit.web.frame import Frame, cell
from edgekit.web.source import ReleaseView, RolloutDevice, RolloutView
from edgekit.web.views.page import (
    STANDING_ORDER,
    Desk,
    Page,
    device_href,
    put_rollout,
    put_standings,
    title_of,
)
from edgekit_contract.messages import Phase

__all__ = ["RolloutPage", "Rollouts"]

LISTED: Final = 100
DEVICES_SHOWN: Final = 25

QUESTIONS: Final = {
    Action.PAUSE: (
        "Pause this rollout?",
        "No further device is told to update. Those that were told go on, and end.",
    ),
    Action.RESUME: ("Resume this rollout?", "The remaining devices are told to update."),
    Action.ABORT: (
        "Abort this rollout?",
        "Devices that have committed keep the release; all others return to the version before. "
        "An aborted rollout cannot be resumed.",
    ),
}
"""What a person is asked before an order: the question, and what follows from a yes."""


class Rollouts(Page):
    template, title, section = "rollouts.html", "Rollouts", "rollouts"

    def __init__(self, desk: Desk, releases: Sequence[ReleaseView], chosen: str) -> None:
        super().__init__(desk)
        self._releases, self._chosen = releases, chosen

    @classmethod
    async def open(cls, desk: Desk, *, release: str = "") -> Rollouts:
        """`release`: the `MODEL@VERSION` that the form starts with."""
        return cls(desk, await desk.source.releases(), release)

    async def fill(self, frame: Frame, now: float) -> None:
        rollouts = self.desk.rollouts(now)[:LISTED]
        frame.rows["rollouts"] = tuple(f"rollout:{rollout.id}" for rollout in rollouts)
        for rollout in rollouts:
            put_rollout(frame, f"rollout:{rollout.id}", rollout)
        frame.cells["rollouts.none"] = cell(show=not rollouts)

    def context(self) -> dict[str, Any]:
        return {
            "releases": [f"{r.model}@{r.version}" for r in self._releases],
            "chosen": self._chosen,
            "profiles": sorted(profile for profile in self.state.by_profile if profile),
        }


class RolloutPage(Page):
    template, section = "rollout.html", "rollouts"

    def __init__(self, desk: Desk, rollout: RolloutView) -> None:
        super().__init__(desk)
        self.id = rollout.id
        self.title = f"{rollout.model} {rollout.version}"

    @classmethod
    async def open(cls, desk: Desk, rollout_id: str) -> RolloutPage | None:
        """The page of a rollout; None where there is none of this id."""
        found = desk.rollout(rollout_id, desk.source.now())
        return None if found is None else cls(desk, found)

    async def fill(self, frame: Frame, now: float) -> None:
        rollout = self.desk.rollout(self.id, now)
        if rollout is None:
            return
        devices = self.desk.rollout_devices(self.id, now)
        put_rollout(frame, "rollout", rollout)
        frame.cells["note"] = cell(rollout.note, show=bool(rollout.note))
        frame.cells["ended"] = (
            cell(show=False) if rollout.ended_at is None else cell(at=rollout.ended_at)
        )
        frame.cells["ended.word"] = cell(show=rollout.ended_at is not None)
        for action in Action:
            frame.cells[f"action.{action.value}"] = cell(show=action in rollout.actions)
        frame.rows["waves"] = tuple(f"wave:{index}" for index, _ in enumerate(rollout.waves))
        for index, wave in enumerate(rollout.waves):
            total = sum(wave.standings.values())
            ended = total - wave.standings.get(Standing.UPDATING, 0)
            ended -= wave.standings.get(Standing.WAITING, 0)
            row = f"wave:{index}"
            frame.cells[f"{row}.title"] = f"Wave {index + 1}: {wave.title}"
            frame.cells[f"{row}.done"] = f"{ended:,} of {display.count(total, 'device')} ended"
            put_standings(frame, row, wave.standings)
        self._fill_standings(frame, devices)
        _fill_failures(frame, devices)
        _fill_updating(frame, devices)
        running = rollout.status is RolloutStatus.RUNNING
        frame.cells["devices.none"] = cell(show=not devices and running)

    def _fill_standings(self, frame: Frame, devices: Sequence[RolloutDevice]) -> None:
        standings = Counter(device.standing for device in devices)
        for standing in STANDING_ORDER:
            frame.cells[f"standing.{standing.value}"] = display.number(standings[standing])
        phases = Counter(device.phase for device in devices if device.phase is not None)
        frame.rows["phases"] = tuple(
            f"phase:{phase.value}" for phase in sorted(phases, key=_ORDER.__getitem__)
        )
        most = max(phases.values(), default=0)
        for phase, number in phases.items():
            row = f"phase:{phase.value}"
            frame.cells |= {
                f"{row}.title": title_of(phase.value),
                f"{row}.count": display.number(number),
                f"{row}.bar": cell(x=0, width=round(display.share(number, most), 4)),
            }
        frame.cells["phases.none"] = cell(show=not phases)

    def context(self) -> dict[str, Any]:
        return {
            "rollout_id": self.id,
            "questions": {action.value: words for action, words in QUESTIONS.items()},
            "standings": [
                (s.value, title_of(s.value), display.STANDING_TONES[s].value)
                for s in STANDING_ORDER
            ],
        }


_ORDER: Final = {phase: index for index, phase in enumerate(Phase)}


def _fill_failures(frame: Frame, devices: Sequence[RolloutDevice]) -> None:
    """Devices that failed or were skipped: their reasons, the commonest first."""
    ended = [d for d in devices if d.standing in (Standing.FAILED, Standing.SKIPPED)]
    reasons = Counter((d.standing, d.reason) for d in ended)
    ended.sort(key=lambda d: (d.standing is Standing.SKIPPED, -reasons[d.standing, d.reason]))
    shown = ended[:DEVICES_SHOWN]
    frame.rows["failures"] = tuple(f"failure:{device.device_id}" for device in shown)
    for device in shown:
        row = f"failure:{device.device_id}"
        frame.cells |= {
            f"{row}.device": cell(device.device_id, href=device_href(device.device_id)),
            f"{row}.standing": cell(
                title_of(device.standing.value), tone=display.STANDING_TONES[device.standing]
            ),
            f"{row}.reason": device.reason or display.NONE,
        }
    frame.cells["failures.some"] = cell(show=bool(shown))
    frame.cells["failures.more"] = cell(
        f"and {display.number(len(ended) - len(shown))} more", show=len(ended) > len(shown)
    )


def _fill_updating(frame: Frame, devices: Sequence[RolloutDevice]) -> None:
    moving = [d for d in devices if d.standing is Standing.UPDATING]
    shown = moving[:DEVICES_SHOWN]
    frame.rows["updating"] = tuple(f"updating:{device.device_id}" for device in shown)
    for device in shown:
        row = f"updating:{device.device_id}"
        frame.cells |= {
            f"{row}.device": cell(device.device_id, href=device_href(device.device_id)),
            f"{row}.phase": cell(
                title_of(device.phase.value) if device.phase else "Told", tone=Tone.BUSY
            ),
        }
    frame.cells["updating.some"] = cell(show=bool(shown))
    frame.cells["updating.more"] = cell(
        f"and {display.number(len(moving) - len(shown))} more", show=len(moving) > len(shown)
    )
