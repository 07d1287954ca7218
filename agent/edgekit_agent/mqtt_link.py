"""The link over MQTT 5 and mutual TLS, in one thread of its own.

Invariants: the paho client is touched by its thread alone, except to queue a message. The session
outlives a short cut (so the Will stays unsaid), the queue does not. There is no plaintext.
Source: MQTT 5.0, sections 3.1.2.11 and 3.1.3.2.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit_agent.clock import Clock
from edgekit_agent.link import Connected, Disconnected, LinkEvent, Received, TakenOver
from edgekit_agent.mqtt_client import Client, DirectClient, MQTTMessage
from edgekit_agent.reconnection import Backoff, Reconnection
from edgekit_agent.tls import demand_valid
from edgekit_contract import limits, topics
from edgekit_contract.errors import MessageRejected
from edgekit_contract.topics import Kind

__all__ = ["MqttLink"]

_KEEPALIVE_S: Final = 30
_SESSION_S: Final = 300
_WILL_DELAY_S: Final = 5
_CONNECT_TIMEOUT_S: Final = 10.0
_LOOP_S: Final = 1.0
_MOST_QUEUED: Final = 256
_INFLIGHT: Final = 64
"""QoS 1 messages out at once, each way: room for the window of fetches beside health and events."""
_PACKET_BYTES: Final = limits.MAX_CHUNK_BYTES + limits.MAX_CONTROL_BYTES
"""A range with its frame, topic and properties; the broker drops what is larger."""


class MqttLink:
    """One device's connection."""

    def __init__(
        self,
        *,
        fleet: str,
        device: str,
        host: str,
        port: int,
        context: ssl.SSLContext,
        will: bytes,
        clock: Clock,
        validity: Callable[[], datetime],
        randomness: random.Random,
        backoff: Backoff,
    ) -> None:
        self._fleet, self._device = fleet, device
        self._host, self._port = host, port
        self._context, self._will = context, will
        self._clock, self._validity = clock, validity
        self._reconnection = Reconnection(backoff, randomness)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._deliver: Callable[[LinkEvent], None] = lambda event: None
        self._client = self._new_client()
        self._connected = False
        self._reason: str | None = None
        self._code: int | None = None
        self._session_present = self._closed_by_peer = False

    # --- called by the daemon

    def start(self, deliver: Callable[[LinkEvent], None]) -> None:
        self._deliver = deliver
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def publish(self, kind: Kind, payload: bytes, *, retain: bool = False) -> None:
        if self._connected:
            topic = topics.topic(self._fleet, self._device, kind)
            self._client.publish(topic, payload, qos=1, retain=retain)

    def fetch(self, payload: bytes, correlation: bytes) -> None:
        if self._connected:
            properties = _properties(PacketTypes.PUBLISH, CorrelationData=correlation)
            topic = topics.topic(self._fleet, self._device, Kind.FETCH)
            self._client.publish(topic, payload, qos=1, properties=properties)

    @property
    def backlog(self) -> int:
        return len(self._client._out_messages)

    def stop(self, farewell: bytes) -> None:
        self._stopping.set()  # before the publish, which wakes the thread
        self.publish(Kind.STATUS, farewell, retain=True)
        if self._thread is not None:
            self._thread.join(timeout=_CONNECT_TIMEOUT_S + 2 * _LOOP_S)

    # --- the link's own thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._attempt()
            if self._stopping.is_set():
                break
            retry_s, taken_over = self._reconnection.ended(
                self._clock.monotonic(), reason=self._code, by_peer=self._closed_by_peer
            )
            kind = TakenOver if taken_over else Disconnected
            self._deliver(kind(self._reason or "the connection was lost", retry_s))
            self._stopping.wait(retry_s)

    def _attempt(self) -> None:
        """Connect and serve the connection until it ends."""
        self._reason = self._code = None
        self._closed_by_peer = False
        # a new client: nothing that was queued for the last connection goes out on this one
        self._client = client = self._new_client()
        try:
            client.connect(
                self._host,
                self._port,
                keepalive=_KEEPALIVE_S,
                clean_start=False,
                properties=_properties(
                    PacketTypes.CONNECT,
                    SessionExpiryInterval=_SESSION_S,
                    MaximumPacketSize=_PACKET_BYTES,
                    ReceiveMaximum=_INFLIGHT,
                ),
            )
            while (code := client.loop(_LOOP_S)) is MQTTErrorCode.MQTT_ERR_SUCCESS:
                if self._stopping.is_set():
                    self._leave(client)
                    break
            self._closed_by_peer = code is MQTTErrorCode.MQTT_ERR_CONN_LOST
        except (OSError, ValueError) as error:
            self._reason = str(error) or type(error).__name__
        finally:
            self._connected = False
            _close(client)

    def _leave(self, client: Client) -> None:
        """Send what is queued (the farewell), then say goodbye so that no Will is published."""
        deadline = self._clock.monotonic() + 2 * _LOOP_S
        while client._out_messages and self._clock.monotonic() < deadline:
            if client.loop(0.05) is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
        client.disconnect()
        client.loop(0.05)

    def _new_client(self) -> Client:
        client = DirectClient(
            CallbackAPIVersion.VERSION2, client_id=self._device, protocol=MQTTProtocolVersion.MQTTv5
        )
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(_INFLIGHT)
        client.max_queued_messages_set(_MOST_QUEUED)
        client.tls_set_context(self._context)
        delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=_WILL_DELAY_S)
        status = topics.topic(self._fleet, self._device, Kind.STATUS)
        client.will_set(status, self._will, qos=1, retain=True, properties=delay)
        client.on_socket_open = self._on_socket_open
        # with this set paho leaves writing to the loop, so that TLS is used by one thread only
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_socket_open(self, client: Client, userdata: Any, sock: Any) -> None:
        if isinstance(sock, ssl.SSLSocket):
            demand_valid(sock, now=self._validity())

    def _on_connect(
        self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            self._reason = f"the broker refused the connection: {reason}"
            return
        self._session_present = flags.session_present
        client.subscribe(
            [
                (topics.topic(self._fleet, self._device, kind), SubscribeOptions(qos=1))
                for kind in topics.TO_DEVICE
            ]
        )

    def _on_subscribe(
        self,
        client: Client,
        userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        properties: Any,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._reason = "the broker refused a subscription: check its ACL"
            client.disconnect()
            return
        self._connected = True
        self._reconnection.connected(self._clock.monotonic(), session_present=self._session_present)
        self._deliver(Connected())

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        self._connected = False
        if flags.is_disconnect_packet_from_server:
            self._code = reason.value
            self._reason = self._reason or f"the broker ended the connection: {reason}"

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        try:
            fleet, device, kind = topics.parse(message.topic)
        except MessageRejected:
            return
        if (fleet, device) != (self._fleet, self._device) or kind not in topics.TO_DEVICE:
            return
        correlation = getattr(message.properties, "CorrelationData", None)
        self._deliver(Received(kind, bytes(message.payload), correlation))


def _properties(packet: int, **values: object) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _close(client: Client) -> None:
    client.on_disconnect = None
    client._sock_close()
    client._reset_sockets(sockpair_only=True)
