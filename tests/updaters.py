"""An updater that runs in this process, with the test at the daemon's end of its channel."""

from __future__ import annotations

import threading
from pathlib import Path

from agents import Fault, Shop, Silence, utc_now

from edgekit_agent.clock import SystemClock
from edgekit_agent.control import (
    Assignment,
    Channel,
    Entering,
    Finished,
    FromUpdater,
    PeerGone,
    Proceed,
    Request,
    ToUpdater,
    socket_pair,
)
from edgekit_agent.updater import Updater
from edgekit_contract.messages import DeviceFacts, Fetch, Phase, encode_chunk
from edgekit_runtime.backend_null import version as null_version

FACTS = DeviceFacts(
    profile="demo-small",
    arch="x86_64",
    cores=1,
    ram_bytes=1 << 30,
    runtimes={"null": str(null_version())},
)


class DaemonEnd:
    """The daemon's part of one updater run: says yes to every phase, asks the depot."""

    def __init__(self, shop: Shop, fault: Fault = lambda fetch: None) -> None:
        self.shop, self.fault = shop, fault
        self.fetched: list[Fetch] = []
        self.phases: list[Phase] = []

    def run(self, assignment: Assignment) -> Finished:
        ours, theirs = socket_pair()
        end: Channel[FromUpdater] = Channel(ours, FromUpdater)
        inner: Channel[ToUpdater] = Channel(theirs, ToUpdater)
        thread = threading.Thread(target=self._serve, args=(end,), daemon=True)
        thread.start()
        try:
            return Updater(inner, assignment, SystemClock()).run()
        finally:
            inner.close()
            thread.join(10)
            end.close()

    def _serve(self, end: Channel[FromUpdater]) -> None:
        while True:
            try:
                message = end.receive()
                if isinstance(message, Entering):
                    self.phases.append(message.phase)
                    end.send(Proceed(phase=message.phase))
                elif isinstance(message, Request):
                    fetch = Fetch(
                        resource=message.resource, offset=message.offset, length=message.length
                    )
                    self.fetched.append(fetch)
                    try:
                        chunk = self.fault(fetch) or self.shop.depot.read(fetch)
                    except Silence:
                        continue
                    while not end.offer_blob(message.number, encode_chunk(chunk)):
                        pass
            except PeerGone:
                return

    def blob_bytes(self) -> int:
        return sum(fetch.length for fetch in self.fetched if fetch.resource.startswith("blobs/"))


def assignment(device: Path, version: str = "1.0", **fields: object) -> Assignment:
    given: dict[str, object] = {
        "directory": str(device),
        "model": "tiny",
        "version": version,
        "slot": "b",
        "now": utc_now(),
        "facts": FACTS,
        "request_timeout_s": 0.2,
        "stall_timeout_s": 1.0,
    }
    return Assignment(**given | fields)  # type: ignore[arg-type]
