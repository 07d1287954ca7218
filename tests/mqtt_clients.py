"""MQTT clients for tests: paho over mutual TLS, received messages in a list."""

from __future__ import annotations

import secrets
import ssl
import threading
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from fleets import WAIT_S, Identity, eventually
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgekit.hub.fleet import Fleet
from edgekit_contract import messages, topics
from edgekit_contract.messages import Chunk, Fetch, Message
from edgekit_contract.topics import Kind


class Client:
    """A client with an identity of its own; connects on entering."""

    def __init__(
        self,
        fleet: Fleet,
        identity: Identity | None,
        *,
        client_id: str = "",
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.fleet = fleet
        self.received: deque[tuple[str, bytes, bool]] = deque()
        self.chunks: dict[bytes, Chunk] = {}
        self.refused: Any = None
        self.ended: list[Any] = []
        self._connected = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5
        )
        context = ssl.create_default_context(cafile=str(fleet.root_ca))
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        self._client.tls_set_context(context)
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def connect(self) -> None:
        """Errors: `OSError` where TLS fails; `ConnectionError` where the broker refuses."""
        self._client.connect("localhost", self.fleet.settings.mqtt_port)
        self._client.loop_start()
        ends = threading.Event()
        self._client.on_connect_fail = lambda *_: ends.set()
        try:
            eventually(lambda: self._connected.is_set() or bool(self.ended) or self.refused)
        except AssertionError:
            self.close()
            raise
        if not self._connected.is_set():
            self.close()
            raise ConnectionError(str(self.refused or self.ended))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def vanish(self) -> None:
        """Break the connection as a dead machine does: without a word."""
        self._client.loop_stop()
        sock = self._client.socket()
        assert sock is not None
        sock.close()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Publish and wait; the reason code of the broker's PUBACK."""
        codes: list[int] = []
        self._client.on_publish = lambda _c, _u, _m, code, _p: codes.append(code.value)
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        info.wait_for_publish(WAIT_S)
        eventually(lambda: bool(codes))
        return codes[0]

    def publish_many(self, messages_: Iterable[tuple[str, bytes]]) -> None:
        """Publish retained messages and wait for the last."""
        infos = [self._client.publish(*message, qos=1, retain=True) for message in messages_]
        infos[-1].wait_for_publish(WAIT_S)
        eventually(lambda: all(info.is_published() for info in infos))

    def subscribe(self, topic: str) -> int:
        """Subscribe and wait; the reason code."""
        codes: list[int] = []
        self._client.on_subscribe = lambda _c, _u, _m, found, _p: codes.extend(
            code.value for code in found
        )
        self._client.subscribe(topic, qos=1)
        eventually(lambda: bool(codes))
        return codes[0]

    def say(self, device: str, message: Message, kind: Kind, *, retain: bool = False) -> int:
        topic = topics.topic(self.fleet.name, device, kind)
        return self.publish(topic, messages.encode(message), retain=retain)

    def fetch(self, device: str, fetch: Fetch, correlation: bytes) -> None:
        """Ask for a range; the answer comes into `chunks`."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = correlation
        topic = topics.topic(self.fleet.name, device, Kind.FETCH)
        self._client.publish(topic, messages.encode(fetch), qos=1, properties=properties)

    def read(self, device: str, resource: str) -> bytes:
        """The whole of a resource by way of the hub."""
        data = b""
        while True:
            key = secrets.token_bytes(8)
            self.fetch(device, Fetch(resource=resource, offset=len(data)), key)
            eventually(lambda key=key: key in self.chunks)  # type: ignore[misc]
            chunk = self.chunks.pop(key)
            assert chunk.status is messages.ChunkStatus.OK, chunk.status
            data += chunk.data
            if len(data) >= chunk.total:
                return data

    def got(self, device: str, kind: Kind) -> list[bytes]:
        """Payloads received for a device and kind, oldest first."""
        topic = topics.topic(self.fleet.name, device, kind)
        return [payload for name, payload, _ in list(self.received) if name == topic]

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _on_connect(self, _c: Any, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if code.is_failure:
            self.refused = code
        else:
            self._connected.set()

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        self.ended.append(code)

    def _on_message(self, _c: Any, _u: Any, message: mqtt.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        if correlation is not None:
            self.chunks[correlation] = messages.decode_chunk(bytes(message.payload))
        self.received.append((message.topic, bytes(message.payload), bool(message.retain)))
