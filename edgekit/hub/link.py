"""The hub's connection to the broker: messages in, retained state out, blobs to who asked.

Invariants: what is retained is published again, whole, after every reconnect, so that the broker
need not remember anything. A device has at most `FETCHES_PER_DEVICE` requests in the works; more
are answered BUSY, as are those that the disk fails, and what does not fit the queue at all is
dropped: the device asks again. No device can make the hub send what the broker would drop it for,
nor log without end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NamedTuple

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgekit.hub.depot import BUSY, Depot
from edgekit.hub.fleet import Fleet
from edgekit_contract import limits, messages, names, topics
from edgekit_contract.errors import MessageRejected
from edgekit_contract.messages import Chunk, Fetch
from edgekit_contract.topics import FROM_DEVICE, Kind

__all__ = ["Link", "Received", "Retained"]

FETCHES_PER_DEVICE: Final = 32
FETCHES_QUEUED: Final = 2048
SENDERS: Final = 16
"""Chunks on their way to the broker at once: mosquitto takes 20 unacknowledged ones."""
INCOMING_QUEUED: Final = 50_000
REJECTED_LOGGED: Final = 10
"""Rejected messages of one device that are logged; further ones are dropped silently."""
KEEPALIVE_S: Final = 30
RETRY_S: Final = (0.25, 10.0)
QOS: Final = 1

_log = logging.getLogger(__name__)


class Received(NamedTuple):
    device: str
    kind: Kind
    payload: bytes
    retained: bool


class Retained(NamedTuple):
    device: str
    kind: Kind
    payload: bytes


class _Request(NamedTuple):
    device: str
    correlation: bytes
    fetch: Fetch | None
    """None: answer BUSY."""


class Link:
    """One connection, made again for ever. `run` is its life."""

    def __init__(
        self,
        fleet: Fleet,
        depot: Depot,
        *,
        receive: Callable[[Received], None],
        retained: Callable[[], Iterable[Retained]],
        say: Callable[[str], None],
    ) -> None:
        """`receive` gets every message but fetches, and may raise `MessageRejected`; `retained`
        gives all that is to be retained; `say` tells a person how the connection fares."""
        self._fleet, self._depot = fleet, depot
        self._receive, self._retained, self._say = receive, retained, say
        self._out: dict[tuple[str, Kind], bytes] = {}
        self._out_waits = asyncio.Event()
        self._requests: asyncio.Queue[_Request] = asyncio.Queue(FETCHES_QUEUED)
        self._pending: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self.connected = False

    def publish(self, message: Retained) -> None:
        """Have a message published, now or when connected again; the newest wins. It is retained,
        unless it is an order to measure."""
        self._out[message.device, message.kind] = message.payload
        self._out_waits.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        wait_s, told = RETRY_S[0], False
        while True:
            try:
                async with self._client() as client:
                    client.pending_calls_threshold = FETCHES_QUEUED
                    await self._subscribe(client)
                    self._say(f"connected to the broker at port {self._port}")
                    self.connected, told, wait_s = True, False, RETRY_S[0]
                    await _until_first_ends(
                        self._receiving(client),
                        self._retaining(client),
                        *(self._sending(client) for _ in range(SENDERS)),
                    )
            except (aiomqtt.MqttError, OSError) as error:
                if not told:
                    self._say(
                        f"no broker at port {self._port} ({error}); trying until there is one: "
                        f"mosquitto -c {self._fleet.mosquitto_conf}"
                    )
                told = True
            finally:
                self.connected = False
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, RETRY_S[1])

    @property
    def _port(self) -> int:
        return self._fleet.settings.mqtt_port

    def _client(self) -> aiomqtt.Client:
        context = ssl.create_default_context(cafile=str(self._fleet.root_ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._fleet.hub, self._fleet.hub_key)
        return aiomqtt.Client(
            self._fleet.settings.broker_host,
            self._port,
            identifier=names.HUB,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=KEEPALIVE_S,
            max_queued_incoming_messages=INCOMING_QUEUED,
            tls_context=context,
            logger=_log.getChild("paho"),
        )

    async def _subscribe(self, client: aiomqtt.Client) -> None:
        filters = [(topics.fleet_filter(self._fleet.name, kind), QOS) for kind in FROM_DEVICE]
        codes = await client.subscribe(filters)
        if any(getattr(code, "value", code) >= 128 for code in codes):
            raise aiomqtt.MqttError("the broker refuses the hub's subscriptions: check its ACL")

    async def _receiving(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            try:
                fleet, device, kind = topics.parse(message.topic.value)
                payload = message.payload
                if fleet != self._fleet.name or not isinstance(payload, bytes):
                    continue
                if kind is Kind.FETCH:
                    self._ask(device, payload, message.properties)
                else:
                    self._receive(Received(device, kind, payload, message.retain))
            except MessageRejected as error:
                self._reject(message.topic.value, error)

    def _reject(self, topic: str, error: MessageRejected) -> None:
        sender = topic.rpartition("/")[0]
        count = self._rejected[sender] = self._rejected[sender] + 1
        if count <= REJECTED_LOGGED:
            last = " (no more are logged of this device)" if count == REJECTED_LOGGED else ""
            _log.warning("%s: %s%s", topic, error, last)

    def _ask(self, device: str, payload: bytes, properties: Properties | None) -> None:
        correlation = getattr(properties, "CorrelationData", b"")
        if len(correlation) > limits.MAX_CORRELATION_BYTES:
            raise MessageRejected(f"{len(correlation)} bytes of correlation data are too many.")
        busy = self._pending[device] >= FETCHES_PER_DEVICE
        fetch = None if busy else messages.decode(payload, Fetch)
        try:
            self._requests.put_nowait(_Request(device, correlation, fetch))
        except asyncio.QueueFull:
            return
        if fetch is not None:
            self._pending[device] += 1

    async def _sending(self, client: aiomqtt.Client) -> None:
        while True:
            device, correlation, fetch = await self._requests.get()
            try:
                chunk = BUSY if fetch is None else await self._read(fetch)
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
                if correlation:
                    properties.CorrelationData = correlation
                topic = topics.topic(self._fleet.name, device, Kind.BLOB)
                await client.publish(
                    topic, messages.encode_chunk(chunk), qos=QOS, properties=properties
                )
            finally:
                if fetch is not None:
                    self._pending[device] -= 1
                    if not self._pending[device]:
                        del self._pending[device]

    async def _read(self, fetch: Fetch) -> Chunk:
        try:
            return await asyncio.to_thread(self._depot.read, fetch)
        except OSError as error:
            # not NOT_FOUND: a device takes that for the end of the chain of root metadata, and of
            # an update for a failed one; what the disk may give again is asked for again
            _log.error("cannot read %s: %s", fetch.resource, error)
            return BUSY

    async def _retaining(self, client: aiomqtt.Client) -> None:
        self._out |= {(r.device, r.kind): r.payload for r in self._retained()}
        self._out_waits.set()
        while True:
            await self._out_waits.wait()
            self._out_waits.clear()
            while self._out:
                key = next(iter(self._out))
                payload = self._out.pop(key)
                topic = topics.topic(self._fleet.name, *key)
                # an acknowledgement that is lost is made again: QoS 1 would cost half as much again
                qos = 0 if key[1] is Kind.ACK else QOS
                # an order to measure is for whoever is there now
                retain = key[1] is not Kind.BENCH
                await client.publish(topic, payload, qos=qos, retain=retain)
                await asyncio.sleep(0)  # publishing at QoS 0 lets nobody else run


async def _until_first_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all; when one ends, end the others and raise what it raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        # asyncio.wait_for, which aiomqtt uses, may swallow a cancellation that comes together with
        # what it waits for (CPython before 3.12, gh-86296): so ask again
        left = set(tasks)
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1)
        await asyncio.gather(*tasks, return_exceptions=True)
