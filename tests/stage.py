"""A fleet on a stage: the real fold, rules of rollouts and dashboard, served by a thread.

What is missing of a hub is the broker, the TUF repository and the store: messages come from the
test, and are kept in lists.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import uvicorn

from edgekit.hub import rollout as rules
from edgekit.hub.conduct import Conduct
from edgekit.hub.rollout import Action, Rollout, Standing
from edgekit.hub.state import Change, FleetState, advance, fold
from edgekit.web.app import create_app
from edgekit.web.source import LoggedEvent, ReleaseView, RolloutDevice, RolloutView, WaveView
from edgekit_contract.errors import Refused
from edgekit_contract.messages import Event, Health, Phase, Reported, Status

R = TypeVar("R")

START_S = 20.0
ADVANCE_S = 0.2


class StageRelease:
    """What `Conduct` and the pages ask of a release."""

    def __init__(self, name: str, version: str, counter: int, bundles: dict[str, int]) -> None:
        self.name, self.version, self.counter, self.bundles = name, version, counter, bundles


class Stage:
    """A `FleetSource` that tests feed with messages. Use it on one event loop."""

    fleet = "lab"

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.state = FleetState()
        self.broker_connected = True
        self.now = now
        self.conduct = Conduct(self.state)
        self._health: dict[str, list[tuple[float, Health]]] = {}
        self._events: list[LoggedEvent] = []

    def say(
        self,
        device: str,
        *messages: Status | Reported | Health | Event,
        at: float | None = None,
        kept: bool = True,
    ) -> None:
        """Messages of a device arrive. `kept`: in the lists that stand for the store."""
        for message in messages:
            arrived = self.now() if at is None else at
            change = fold(self.state, device, message, arrived)
            if kept and isinstance(message, Health) and Change.HEALTH in change:
                self._health.setdefault(device, []).append((message.at.timestamp(), message))
            elif kept and isinstance(message, Event) and Change.EVENT in change:
                self._events.append(LoggedEvent(device_id=device, at=arrived, event=message))

    def tick(self) -> None:
        """Let time pass and rollouts go on."""
        advance(self.state, self.now())
        self.conduct.settle(self.conduct.plan(self.now()))

    def publish(self, model: str, version: str, **profiles: int) -> None:
        """Add a release with bundles of these sizes in bytes; `_` stands for `-` in profiles."""
        bundles = {name.replace("_", "-"): size for name, size in profiles.items()}
        release = StageRelease(model, version, len(self.conduct.releases) + 1, bundles)
        self.conduct.releases = [release, *self.conduct.releases]  # type: ignore[list-item]

    def rollouts(self) -> Sequence[RolloutView]:
        return [
            RolloutView(
                id=rollout.id,
                model=rollout.model,
                version=rollout.version,
                selector=rollout.selector,
                status=rollout.status,
                note=rollout.note,
                started_at=rollout.started_at,
                ended_at=rollout.ended_at,
                waves=tuple(
                    WaveView(
                        title=wave.title,
                        standings=Counter(
                            part.standing
                            for part in self.conduct.assignments.get(rollout.id, {}).values()
                            if part.wave == index
                        ),
                    )
                    for index, wave in enumerate(rollout.waves)
                ),
                actions=rules.permitted(rollout.status),
            )
            for rollout in self.conduct.rollouts
        ]

    def rollout_devices(self, rollout_id: str) -> Sequence[RolloutDevice]:
        rollout = next((r for r in self.conduct.rollouts if r.id == rollout_id), None)
        if rollout is None:
            return []
        parts = sorted(self.conduct.assignments.get(rollout_id, {}).items())
        return [
            RolloutDevice(
                device_id=device,
                wave=part.wave,
                standing=part.standing,
                phase=self._phase(rollout, device) if part.standing is Standing.UPDATING else None,
                reason=part.reason,
            )
            for device, part in parts
        ]

    async def releases(self) -> Sequence[ReleaseView]:
        return [
            ReleaseView(
                model=release.name,
                version=release.version,
                counter=release.counter,
                profiles=release.bundles,  # type: ignore[arg-type]
            )
            for release in self.conduct.releases
        ]

    async def health(
        self, device_id: str, *, since: float, limit: int
    ) -> Sequence[tuple[float, Health]]:
        return [pair for pair in self._health.get(device_id, ()) if pair[0] >= since][-limit:]

    async def events(
        self, device_id: str | None, *, limit: int, before: float | None = None
    ) -> Sequence[LoggedEvent]:
        return [
            logged
            for logged in reversed(self._events)
            if device_id in (None, logged.device_id) and (before is None or logged.at < before)
        ][:limit]

    async def start_rollout(self, model: str, version: str, *, selector: str) -> str:
        rules.check_selector(selector)
        known = {(release.name, release.version) for release in self.conduct.releases}
        if (model, version) not in known:
            raise Refused(f"there is no release {model}@{version}: add it first.")
        number = len(self.conduct.rollouts) + 1
        rollout = Rollout(
            id=f"{model}-{version}-{number}",
            model=model,
            version=version,
            selector=selector,
            started_at=self.now(),
        )
        superseded = {r.id: r for r in rules.superseded(self.conduct.rollouts, rollout)}
        rest = [superseded.get(r.id, r) for r in self.conduct.rollouts]
        self.conduct.take_rollouts([rollout, *rest])
        self.tick()
        return rollout.id

    async def order(self, rollout_id: str, action: Action) -> None:
        self.conduct.take_rollouts(
            rules.act(r, action, now=self.now()) if r.id == rollout_id else r
            for r in list(self.conduct.rollouts)
        )
        self.tick()

    def _phase(self, rollout: Rollout, device: str) -> Phase | None:
        view = self.conduct.view(device)
        return None if view is None else rules.standing_of(rollout, view)[1]


class _Server(uvicorn.Server):
    """Leaves signals to the test."""

    def install_signal_handlers(self) -> None:
        pass


class Curtain:
    """The dashboard over a stage, served on a free port of loopback by a thread of its own."""

    def __init__(self, stage: Stage | None = None, *, port: int = 0) -> None:
        self.stage = Stage() if stage is None else stage
        self.app = create_app(self.stage)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        config = uvicorn.Config(
            self.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, question: Callable[[Stage], R]) -> R:
        """Do something with the stage on its own loop; its answer."""

        async def asked() -> R:
            return question(self.stage)

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(START_S)

    def __enter__(self) -> Curtain:
        self._thread.start()
        ends_at = time.monotonic() + START_S
        while not self._server.started and time.monotonic() < ends_at:
            time.sleep(0.01)
        assert self._server.started
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)
        self._socket.close()
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        passing = asyncio.create_task(self._pass())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            passing.cancel()

    async def _pass(self) -> None:
        while True:
            self.stage.tick()
            await asyncio.sleep(ADVANCE_S)
