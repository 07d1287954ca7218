"""The hub at work: messages are folded at once, written once a second, then acknowledged.

Invariants: only the event loop touches the state; only one thread writes, one thing at a time; a
desired state is on the disk before it is published, and so is what an acknowledgement covers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from edgekit.hub.conduct import Conduct
from edgekit.hub.database import StoreBusy
from edgekit.hub.depot import Depot
from edgekit.hub.fleet import Fleet
from edgekit.hub.inbox import Inbox
from edgekit.hub.ledger import Wanted
from edgekit.hub.link import Link, Received, Retained
from edgekit.hub.records import Batch, Kept
from edgekit.hub.state import Change, FleetState, advance, expect, fold
from edgekit.hub.store import Store
from edgekit.release.repository import RepositoryDamaged
from edgekit_contract import messages
from edgekit_contract.messages import (
    Ack,
    Benched,
    Desired,
    Event,
    EventKind,
    Health,
    Reported,
    Status,
    Target,
)
from edgekit_contract.topics import Kind

__all__ = ["Service"]

TICK_S: Final = 1.0
LOOK_S: Final = 5.0
"""How long an order waits to be taken in; it is written by then in any case."""
RENEWAL_S: Final = 600.0
"""How often it is looked whether the TUF timestamp wants signing again."""
RENEWAL_RETRY_S: Final = 10.0
ENDING: Final = timedelta(days=5)
"""TUF metadata with less to live are told of: those that the hub signs never have."""
UNWRITTEN_MOST: Final = 50_000
"""Messages, of at most 4,000 bytes: with more that cannot be written the hub ends."""
TAKEOVER_S: Final = 60.0
"""Agents that fight over an identity are told of once in so long."""

_KINDS: Final[dict[Kind, type[Status | Reported | Health | Event]]] = {
    Kind.STATUS: Status,
    Kind.REPORTED: Reported,
    Kind.HEALTH: Health,
    Kind.EVENT: Event,
}
_MOST_ANSWERS: Final = 16
"""Of a device, that wait to be written: more nobody asked for."""
_log = logging.getLogger(__name__)

R = TypeVar("R")


class Service:
    """One fleet's hub, less its web sides. Make it on the event loop, then `run` it."""

    def __init__(
        self,
        fleet: Fleet,
        store: Store,
        *,
        now: Callable[[], datetime],
        say: Callable[[str], None],
        depot: Depot | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        """`depot`: another than that of the fleet directory. `tick_s`: how often it writes."""
        self.fleet, self.store = fleet, store
        self.state = FleetState()
        self.repository = fleet.repository
        self._now, self._say, self._tick_s = now, say, tick_s
        self._writer = ThreadPoolExecutor(1, "store")
        self._stream = f"hub-{secrets.token_hex(4)}"
        self._remarks = 0
        self._taken_over: dict[str, float] = {}
        self._inbox = Inbox(store.records.streams(now=self.now()))
        self._unwritten: tuple[Batch, dict[str, Ack]] | None = None
        """What was taken of the inbox and is not written yet, with what it acknowledges."""
        self._waiting = False
        """Whether a person was told that another process holds the store."""
        self.conduct = Conduct(self.state)
        self._wake = asyncio.Event()
        self._looking: list[asyncio.Future[None]] = []
        """Of those who wait until the next tick has ended."""
        self._orders = -1
        self._published = -1
        self._planned: tuple[int, int, int] | None = None
        self._asked: set[str] = set()
        """Measurements that devices were asked for."""
        self._answers: dict[tuple[str, str], Benched] = {}
        """Of a device to an order, not written yet."""
        self._renew_at = 0.0
        self._ending: set[str] = set()
        self.link = Link(
            fleet,
            depot or Depot(fleet.directory),
            receive=self._receive,
            retained=self._retained,
            say=say,
        )
        self._recall()

    def instant(self) -> datetime:
        return self._now()

    def now(self) -> float:
        """Unix seconds."""
        return self._now().timestamp()

    async def run(self) -> None:
        """Work until cancelled; then write what has come."""
        link = asyncio.create_task(self.link.run(), name="link")
        link.add_done_callback(lambda _: self._wake.set())
        try:
            while not link.done():
                self._wake.clear()
                looking, self._looking = self._looking, []
                await self._turn()
                for seen in looking:
                    if not seen.done():
                        seen.set_result(None)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._tick_s)
            link.result()
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
            try:
                while batch := self._next_batch()[0]:
                    self._writer.submit(self.store.records.write, batch).result()
                    self._inbox.written(batch)
                    self._unwritten = None
            finally:
                self._writer.shutdown()

    async def written(self, work: Callable[..., R], *args: Any) -> R:
        """Run something of the store in the one thread that writes. Errors: those of `Database`."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *args)

    async def look(self) -> None:
        """Take in what was ordered at once, not at the next tick; returns when that is done."""
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._looking.append(seen)
        self._wake.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(seen, LOOK_S)

    def _recall(self) -> None:
        """Begin where the store stands."""
        for row in self.store.registry.devices():
            expect(self.state, row.id, profile=row.profile)
            for message in (row.reported, row.status):
                if message is not None and row.heard_at is not None:
                    fold(self.state, row.id, message, row.heard_at, retained=True)
            self.conduct.wanted[row.id] = Wanted(generation=row.generation, models=row.desired)

    def _retained(self) -> Iterator[Retained]:
        self._inbox.reconnected()
        for device, wanted in self.conduct.wanted.items():
            if wanted.generation:
                yield _desired(device, wanted)
        for device, ack in self._inbox.acks().items():
            yield Retained(device, Kind.ACK, messages.encode(ack))

    def _receive(self, received: Received) -> None:
        device, kind, body, retained = received
        at = self.now()
        if kind is Kind.BENCHED:
            answer = messages.decode(body, Benched)
            if sum(of == device for of, _ in self._answers) < _MOST_ANSWERS:
                self._answers[device, answer.id] = answer
                self._wake.set()
            return
        message = messages.decode(body, _KINDS[kind])
        change = fold(self.state, device, message, at, retained=retained)
        if isinstance(message, Health):
            self._inbox.health(device, message, body, at)
        elif isinstance(message, Event):
            self._inbox.event(device, message, body, at)
        if not retained:
            heard = self._inbox.heard(device, at)
        elif change & (Change.STATUS | Change.REPORTED):
            heard = self._inbox.heard(device, self.state.devices[device].heard_at or at)
        else:
            return
        if isinstance(message, Status):
            heard.status = body
        elif isinstance(message, Reported):
            heard.reported = body
            heard.profile = message.device.profile
        if change & Change.TAKEOVER:
            self._remark_takeover(device, at)

    def _remark_takeover(self, device: str, at: float) -> None:
        if at - self._taken_over.get(device, -math.inf) < TAKEOVER_S:
            return
        self._taken_over[device] = at
        self._remarks += 1
        event = Event(
            stream=self._stream,
            seq=self._remarks,
            at=self._now(),
            kind=EventKind.TAKEOVER,
            text="two agents use this identity by turns",
        )
        self._inbox.remark(Kept(device, event.stream, event.seq, at, messages.encode(event)))
        _log.warning("%s: two agents use this identity by turns", device)

    async def _turn(self) -> None:
        """A tick; while another process holds the store, what comes is only collected."""
        try:
            await self._tick()
        except StoreBusy as error:
            if self._inbox.size > UNWRITTEN_MOST:
                raise
            if not self._waiting:
                self._say(f"nothing is stored or acknowledged for now: {error}")
            self._waiting = True
            return
        if self._waiting:
            self._say("the store is free again")
        self._waiting = False

    def _next_batch(self) -> tuple[Batch, dict[str, Ack]]:
        if self._unwritten is None:
            self._unwritten = self._inbox.take(self.now())
        return self._unwritten

    async def _tick(self) -> None:
        now = self.now()
        advance(self.state, now)
        batch, acks = self._next_batch()
        if batch:
            await self.written(self.store.records.write, batch)
            self._inbox.written(batch)
        self._unwritten = None
        await self._write_answers()
        for device, ack in acks.items():
            self.link.publish(Retained(device, Kind.ACK, messages.encode(ack)))
        if now >= self._renew_at:
            self._renew_at = now + RENEWAL_S
            await self._renew()
        await self._reload()
        await self._plan(now)

    async def _reload(self) -> None:
        orders = await self.written(self.store.orders)
        if orders != self._orders:
            rows = await self.written(self.store.registry.devices)
            rollouts = await self.written(self.store.ledger.rollouts)
            for row in rows:
                if row.id not in self.conduct.wanted:
                    expect(self.state, row.id, profile=row.profile)
                    self.conduct.wanted[row.id] = Wanted(
                        generation=row.generation, models=row.desired
                    )
            for rollout in rollouts:
                if rollout.id not in self.conduct.assignments:
                    self.conduct.assignments[rollout.id] = await self.written(
                        self.store.ledger.assignments, rollout.id
                    )
            self.conduct.take_rollouts(rollouts)
            await self._ask()
            self._orders = orders
        published = self.repository.stamp()
        if published != self._published:
            self._published = published
            try:
                self.conduct.releases = await asyncio.to_thread(self.repository.releases)
            except RepositoryDamaged as error:
                self._say(str(error))

    async def _ask(self) -> None:
        """Pass on the orders to measure that no device has heard of from this hub."""
        waiting = await self.written(lambda: self.store.benches.open(now=self.now()))
        for id_, (device, body) in waiting.items():
            if id_ not in self._asked:
                self.link.publish(Retained(device, Kind.BENCH, body))
        self._asked = set(waiting)

    async def _write_answers(self) -> None:
        while self._answers:
            (device, id_), answer = next(iter(self._answers.items()))
            await self.written(self.store.benches.answer, device, answer)
            if self._answers[device, id_] is answer:
                del self._answers[device, id_]

    async def _plan(self, now: float) -> None:
        moment = (self.state.version, self._orders, self._published)
        if moment == self._planned:
            return
        news = self.conduct.plan(now)
        if news:
            await self.written(
                lambda: self.store.ledger.advance(
                    wanted=news.wanted, assignments=news.assignments, done=news.done
                )
            )
        self.conduct.settle(news)
        for device, wanted in news.wanted.items():
            self.link.publish(_desired(device, wanted))
        self._planned = None if news else moment

    async def _renew(self) -> None:
        try:
            try:
                if await asyncio.to_thread(lambda: self.repository.refresh_online(now=self._now())):
                    _log.info("signed the TUF timestamp again")
            except BlockingIOError:  # a release is being added: its end may leave nothing to sign
                self._renew_at = self.now() + RENEWAL_RETRY_S
            expiries = await asyncio.to_thread(self.repository.expiries)
        except (RepositoryDamaged, OSError) as error:
            self._say(f"cannot sign the TUF timestamp, so updates will stop: {error}")
            return
        ending = {r for r, at in expiries.items() if at - self._now() < ENDING}
        for role in sorted(ending - self._ending):
            self._say(
                f"the {role} metadata end on {expiries[role]:%Y-%m-%d}, and updates with them: "
                "`edgekit release add` signs the targets again."
            )
        self._ending = ending


def _desired(device: str, wanted: Wanted) -> Retained:
    desired = Desired(
        generation=wanted.generation,
        models={name: Target(version=version) for name, version in wanted.models.items()},
    )
    return Retained(device, Kind.DESIRED, messages.encode(desired))
