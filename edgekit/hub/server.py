"""`edgekit hub`: the service, enrolment over HTTPS and the dashboard, in one process.

Invariants: one hub per fleet directory; when one part ends, all end; what came is written first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, Final

import uvicorn

from edgekit.hub.enrolment import create_enrolment
from edgekit.hub.fleet import Fleet
from edgekit.hub.service import Service
from edgekit.hub.source import HubSource
from edgekit.hub.store import open_store
from edgekit.release.storage import locked
from edgekit.web.app import create_app
from edgekit_contract.errors import Refused

__all__ = ["HubRunning", "PortTaken", "run_hub"]

CLOSE_S: Final = 3
"""How long open pages may take to close."""
GC_THRESHOLD: Final = (50_000, 50, 100)
REQUESTS_AT_ONCE: Final = 200
"""Of enrolment; more are answered 503."""


class HubRunning(Refused):
    def __init__(self, fleet: Fleet) -> None:
        super().__init__(f"a hub of {fleet.directory} is running already: stop that one first.")


class PortTaken(Refused):
    def __init__(self, port: int, setting: str, detail: str) -> None:
        super().__init__(
            f"cannot listen on port {port} ({detail}): choose another {setting} in fleet.toml."
        )


class _Server(uvicorn.Server):
    """Leaves signals to `run_hub`, which has more than one server to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_hub(fleet: Fleet, *, say: Callable[[str], None]) -> None:
    """Serve a fleet until SIGTERM or SIGINT. `say` tells a person what happens.

    Errors: `HubRunning`, `PortTaken`, `StoreFailed`, `Misused`.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(fleet.hub_lock, wait=False))
        except BlockingIOError as error:
            raise HubRunning(fleet) from error
        # walking the state of thousands of devices for garbage took half of the hub's time
        gc.set_threshold(*GC_THRESHOLD)
        asyncio.run(_serve(fleet, say))


async def _serve(fleet: Fleet, say: Callable[[str], None]) -> None:
    settings = fleet.settings
    with contextlib.ExitStack() as stack:
        store = open_store(fleet.database)
        stack.callback(store.close)
        https = stack.enter_context(_listen(settings.address, settings.https_port, "https_port"))
        web = stack.enter_context(_listen("127.0.0.1", settings.web_port, "web_port"))
        service = Service(fleet, store, now=_utc_now, say=say)
        enrolment = uvicorn.Config(
            create_enrolment(fleet, store.registry, now=_utc_now),
            ssl_certfile=str(fleet.server),
            ssl_keyfile=str(fleet.server_key),
            limit_concurrency=REQUESTS_AT_ONCE,
            **_QUIET,
        )
        pages = uvicorn.Config(create_app(HubSource(service)), **_QUIET)
        servers = [(_Server(enrolment), https), (_Server(pages), web)]
        say(f"fleet {fleet.name}")
        say(f"enrolment  https://{settings.hosts[0]}:{settings.https_port}")
        say(f"dashboard  http://127.0.0.1:{settings.web_port}/")
        parts = [asyncio.create_task(service.run(), name="service")]
        parts += [asyncio.create_task(s.serve(sockets=[listener])) for s, listener in servers]
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopped, *parts], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            for server, _ in servers:
                server.should_exit = True
            parts[0].cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


def _listen(address: str | None, port: int, setting: str) -> socket.socket:
    """A listening socket on one address, or on all (None), IPv6 included where there is any."""
    try:
        if address is None and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        host = address or "0.0.0.0"
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise PortTaken(port, setting, error.strerror or str(error)) from error


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


_QUIET: Final[dict[str, Any]] = {
    "log_config": None,
    "access_log": False,
    "lifespan": "off",
    "timeout_graceful_shutdown": CLOSE_S,
    "server_header": False,
}
logging.getLogger("uvicorn").setLevel(logging.WARNING)
