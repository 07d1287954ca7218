"""What the daemon and its children say to each other, over socket pairs that keep packets apart.

Invariant: one packet is one message. A packet that begins with `{` is JSON of a tagged Struct;
any other is a relayed blob frame: an 8-byte request number (big endian), then the payload as it
came off the wire, which the daemon does not look into. A closed socket is a dead peer.
"""

from __future__ import annotations

import socket
import struct
from datetime import datetime
from typing import Final, Generic, TypeVar

import msgspec

from edgekit_contract import limits
from edgekit_contract.messages import DeviceFacts, Execution, Phase

__all__ = [
    "BENCH_DIRECTORY",
    "Assignment",
    "BenchAssignment",
    "BenchFigures",
    "BlobPacket",
    "Channel",
    "Drain",
    "Drained",
    "Entering",
    "Failed",
    "Finished",
    "FromUpdater",
    "FromWorker",
    "Measured",
    "MetadataVersions",
    "PeerGone",
    "Proceed",
    "Progress",
    "Ready",
    "Release",
    "Request",
    "Serve",
    "Stats",
    "ToUpdater",
    "ToWorker",
    "Verdict",
    "WarmupReport",
    "read_report",
    "socket_pair",
]

BENCH_DIRECTORY: Final = "bench"
"""Of the device's directory: a measurement's files, while there is one."""
MAX_PACKET_BYTES: Final = 2 * limits.MAX_CHUNK_BYTES
_REPORT_BYTES: Final = 1 << 16
_REQUEST: Final = struct.Struct(">Q")
_HIGHEST_REQUEST: Final = 2**48
"""Keeps the first byte of a relayed frame at zero, so that it is never taken for JSON."""


class _Packet(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


# --- worker to daemon


class Ready(_Packet, frozen=True, kw_only=True, tag="ready"):
    """The bundle's directory is verified, the model loaded and run once; not serving yet."""

    load_s: float
    rss_bytes: int
    execution: Execution = Execution()


class Failed(_Packet, frozen=True, kw_only=True, tag="failed"):
    """The worker cannot serve this bundle and exits with code 1."""

    reason: str
    damaged: bool = False
    """The directory does not match its digest: fetching it again would help."""


class Stats(_Packet, frozen=True, kw_only=True, tag="stats"):
    """Every second. Counts since the worker started; latencies since the Stats before."""

    inferences: int
    errors: int
    rejected: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    busy_since_s: float | None = None
    """How long the running inference has been running; None where none is."""
    rss_bytes: int


class Drained(_Packet, frozen=True, kw_only=True, tag="drained"):
    """Nothing is in flight any more; the worker exits with code 0."""


# --- daemon to worker


class Serve(_Packet, frozen=True, kw_only=True, tag="serve"):
    """Accept connections on the listening sockets."""


class Drain(_Packet, frozen=True, kw_only=True, tag="drain"):
    """Accept no more, finish what is in flight, say Drained, exit."""


# --- updater to daemon


class MetadataVersions(_Packet, frozen=True, kw_only=True, tag="versions"):
    """Versions of the TUF roles that were verified, and the time that their signatures prove."""

    root: int = 0
    timestamp: int = 0
    snapshot: int = 0
    targets: int = 0
    proven: datetime | None = None
    timestamp_keys: tuple[str, ...] = ()
    """Ids of the role's keys in that root, as are the next; none: not known."""
    snapshot_keys: tuple[str, ...] = ()


class Release(_Packet, frozen=True, kw_only=True, tag="release"):
    """A target that TUF metadata signed for this device's profile."""

    version: str
    digest: str
    """SHA-256 of the envelope."""
    counter: int
    floor: int


class Entering(_Packet, frozen=True, kw_only=True, tag="entering"):
    """The updater is about to enter `phase` and waits for Proceed, which follows the journal."""

    phase: Phase
    release: Release
    versions: MetadataVersions


class Request(_Packet, frozen=True, kw_only=True, tag="request"):
    """Ask the hub for a range; the answer is a `BlobPacket` of the same number, or never comes."""

    number: int
    resource: str
    offset: int
    length: int


class Progress(_Packet, frozen=True, kw_only=True, tag="progress"):
    done_bytes: int
    total_bytes: int


class Verdict(_Packet, frozen=True, kw_only=True, tag="verdict"):
    """Why an update stopped before SWITCH."""

    final: bool
    """The release is refused; else the reason may pass and it is tried again."""
    reason: str


class Finished(_Packet, frozen=True, kw_only=True, tag="finished"):
    """The last packet. No `verdict`: `release` is staged and warm, or, if None, active already."""

    release: Release | None = None
    verdict: Verdict | None = None
    versions: MetadataVersions | None = None


class BenchFigures(msgspec.Struct, frozen=True, kw_only=True):
    median_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float
    runs: int


class Measured(_Packet, frozen=True, kw_only=True, tag="measured"):
    """The last packet of a measurement: figures, or the reason why there are none."""

    figures: BenchFigures | None = None
    rss_bytes: int | None = None
    runtime: str = ""
    reason: str = ""
    versions: MetadataVersions | None = None


# --- daemon to updater


class Assignment(_Packet, frozen=True, kw_only=True, tag="assignment"):
    """The first packet: all that the updater knows of the device."""

    directory: str
    model: str
    version: str
    slot: str
    """The inactive slot, `a` or `b`."""
    active_slot: str | None = None
    active_digest: str | None = None
    """None where nothing is active or what is active is damaged."""
    barred_digest: str | None = None
    barred_reason: str = ""
    counter_floor: int = 0
    versions: MetadataVersions = MetadataVersions()
    now: datetime
    """The latest of the clock and all signed times; never before them."""
    clock_behind: bool = False
    """Whether the clock stands before a time that is known to have passed."""
    facts: DeviceFacts
    max_rss_bytes: int | None = None
    max_latency_ms: float | None = None
    max_fetch_bytes: int | None = None
    window: str | None = None
    """As in `window.WINDOW_PATTERN`."""
    request_timeout_s: float = 5.0
    stall_timeout_s: float = 60.0
    warmup_timeout_s: float = 300.0


class BenchAssignment(_Packet, frozen=True, kw_only=True, tag="bench"):
    """The first packet in place of an `Assignment`: time a bundle and leave nothing of it."""

    directory: str
    digest: str
    budget_s: float
    versions: MetadataVersions = MetadataVersions()
    now: datetime
    clock_behind: bool = False
    facts: DeviceFacts
    max_rss_bytes: int | None = None
    max_fetch_bytes: int | None = None
    window: str | None = None
    request_timeout_s: float = 5.0
    stall_timeout_s: float = 60.0
    warmup_timeout_s: float = 300.0


class Proceed(_Packet, frozen=True, kw_only=True, tag="proceed"):
    """The journal says `phase`; go on."""

    phase: Phase


class BlobPacket(msgspec.Struct, frozen=True, kw_only=True):
    """A relayed blob frame. The only packet that is not JSON."""

    number: int
    payload: bytes


# --- warm-up to updater, as one line on stdout


class WarmupReport(msgspec.Struct, frozen=True, kw_only=True):
    """Exit code 0 with `passed`, else 1."""

    passed: bool
    reason: str = ""
    load_s: float | None = None
    latency_ms: float | None = None
    """Median over the golden vectors."""
    rss_bytes: int | None = None
    execution: Execution | None = None
    figures: BenchFigures | None = None
    """Of runs on the golden inputs, where these were asked for."""


def read_report(stdout: bytes) -> WarmupReport | None:
    """The last line; a runtime may have printed others."""
    lines = stdout[-_REPORT_BYTES:].strip().splitlines()
    try:
        return msgspec.json.decode(lines[-1], type=WarmupReport) if lines else None
    except msgspec.DecodeError:
        return None


FromWorker = Ready | Failed | Stats | Drained
ToWorker = Serve | Drain
FromUpdater = Entering | Request | Progress | Finished | Measured
ToUpdater = Assignment | BenchAssignment | Proceed

Incoming = TypeVar("Incoming")


class PeerGone(Exception):
    """The other end closed the channel or sent what is not a message."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep packets apart, each for one process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel(Generic[Incoming]):
    """One end of a socket pair, typed by what it receives."""

    def __init__(self, sock: socket.socket, incoming: object) -> None:
        self._socket = sock
        self._decoder: msgspec.json.Decoder[Incoming] = msgspec.json.Decoder(incoming)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: _Packet) -> None:
        """Errors: `PeerGone`."""
        try:
            self._socket.send(msgspec.json.encode(message))
        except OSError as error:
            raise PeerGone(str(error)) from error

    def offer_blob(self, number: int, payload: bytes) -> bool:
        """Relay a blob frame; False where the peer has yet to read. Errors: `PeerGone`."""
        if not 0 <= number < _HIGHEST_REQUEST:
            raise RuntimeError(f"request number {number}")
        try:
            self._socket.send(_REQUEST.pack(number) + payload, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerGone(str(error)) from error
        return True

    def receive(self, timeout_s: float | None = None) -> Incoming | BlobPacket | None:
        """The next message, or None where none came in time. Errors: `PeerGone`."""
        self._socket.settimeout(timeout_s)
        try:
            packet = self._socket.recv(MAX_PACKET_BYTES)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError as error:
            raise PeerGone(str(error)) from error
        finally:
            if self._socket.fileno() >= 0:
                self._socket.settimeout(None)
        if not packet:
            raise PeerGone("the channel is closed")
        if packet[:1] != b"{":
            if len(packet) < _REQUEST.size:
                raise PeerGone("a packet that is no message")
            return BlobPacket(
                number=_REQUEST.unpack_from(packet)[0], payload=packet[_REQUEST.size :]
            )
        try:
            return self._decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise PeerGone(f"a packet that is no message: {error}") from error

    def close(self) -> None:
        self._socket.close()
