"""The hub's service in a thread of the test, on a real store and a real broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import TypeVar

from fleets import eventually, utc_now

from edgekit.hub.depot import Depot
from edgekit.hub.fleet import Fleet
from edgekit.hub.service import Service
from edgekit.hub.source import HubSource
from edgekit.hub.store import Store, open_store

R = TypeVar("R")


class RunningHub:
    """A hub without its web sides; `store` is a second handle on its store, as commands have."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        now: Callable[[], datetime] = utc_now,
        depot: Depot | None = None,
        connected: bool = True,
    ) -> None:
        self.fleet = fleet
        self.store: Store = open_store(fleet.database)
        self.said: list[str] = []
        self.service: Service
        self._now, self._depot, self._wait = now, depot, connected
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def source(self) -> HubSource:
        return HubSource(self.service)

    def ask(self, question: Callable[[], R]) -> R:
        """Ask on the hub's own loop."""

        async def asked() -> R:
            return question()

        return asyncio.run_coroutine_threadsafe(asked(), self._loop).result(30)

    def __enter__(self) -> RunningHub:
        self._thread.start()
        eventually(lambda: self._task is not None or self._error is not None)
        if self._wait:
            eventually(lambda: self.service.link.connected or self._error is not None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)
        self.store.close()
        assert not self._thread.is_alive()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _main(self) -> None:
        store = open_store(self.fleet.database)
        try:
            self.service = Service(
                self.fleet,
                store,
                now=self._now,
                say=self.said.append,
                depot=self._depot,
                tick_s=0.1,
            )
            self._task = asyncio.current_task()
            await self.service.run()
        finally:
            store.close()
