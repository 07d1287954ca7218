"""Messages on the wire: JSON structs, and one binary frame for blob ranges.

Rules: a control message is at most `limits.MAX_CONTROL_BYTES`; integers stay under 2^53; times are
RFC 3339 in UTC; unknown fields are ignored; host metrics may be null. Model names and versions that
were decoded are safe as file names. Everything here is imported by the daemon, so it imports
nothing but msgspec and the standard library.
"""

from __future__ import annotations

import enum
import struct
from datetime import datetime
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from edgekit_contract import limits, names
from edgekit_contract.errors import MessageRejected

__all__ = [
    "Ack",
    "Bench",
    "Benched",
    "BundleRef",
    "Capabilities",
    "Chunk",
    "ChunkStatus",
    "Desired",
    "DeviceFacts",
    "Event",
    "EventKind",
    "Execution",
    "Fetch",
    "Health",
    "HostMetrics",
    "Message",
    "ModelHealth",
    "Outcome",
    "OutcomeKind",
    "Phase",
    "ProcessMetrics",
    "Reported",
    "ReportedModel",
    "Status",
    "Target",
    "blob_resource",
    "cut",
    "decode",
    "decode_chunk",
    "encode",
    "encode_chunk",
    "metadata_resource",
    "target_resource",
]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_JSON_INTEGER)]
Instant: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
ModelName: TypeAlias = Annotated[str, msgspec.Meta(pattern=names.MODEL_NAME_PATTERN)]
Version: TypeAlias = Annotated[str, msgspec.Meta(pattern=names.VERSION_PATTERN)]


class Phase(enum.Enum):
    """Steps of the update machine, in their order; the last two end it."""

    IDLE = "idle"
    CHECK = "check"
    PREFLIGHT = "preflight"
    FETCH = "fetch"
    VERIFY = "verify"
    STAGE = "stage"
    WARMUP = "warmup"
    SWITCH = "switch"
    PROBATION = "probation"
    COMMIT = "commit"
    ROLLBACK = "rollback"


class OutcomeKind(enum.Enum):
    COMMITTED = "committed"
    REFUSED = "refused"
    """Never served: stopped between CHECK and WARMUP."""
    ROLLED_BACK = "rolled-back"
    """Served, then found unhealthy in PROBATION."""


class EventKind(enum.Enum):
    STARTED = "started"
    PHASE = "phase"
    OUTCOME = "outcome"
    RETRY = "retry"
    """An update step failed for a passing reason and will be tried again."""
    WORKER_LOST = "worker-lost"
    TAKEOVER = "takeover"
    """The broker gave this device's session to another client with its identity."""
    REJECTED = "rejected"
    """A message from the hub that could not be understood."""
    FALLBACK = "fallback"
    """A worker is ready, and not all that was to compute its model does: see `Execution`."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the control messages: JSON, defaults left out."""


class Status(Message, frozen=True, kw_only=True):
    """Retained; with `online` false it is the Will: unreachable, not failed."""

    online: bool
    at: Instant | None = None
    instance: str = ""
    """Random for each start of the daemon: two values by turns are two devices on one identity."""
    agent: str = ""
    suspended: bool = False


class BundleRef(Message, frozen=True, kw_only=True):
    version: Version
    digest: str
    """SHA-256 of the envelope."""
    counter: Count


class Outcome(Message, frozen=True, kw_only=True):
    kind: OutcomeKind
    version: Version
    digest: str = ""
    phase: Phase
    reason: str = ""
    at: Instant


class Execution(Message, frozen=True, kw_only=True):
    """What computes a loaded model: ONNX Runtime's execution providers, LiteRT's delegates, or what
    a runtime plug-in calls such a thing. A name in `asked` and not in `used` was not to be had."""

    asked: tuple[str, ...] = ()
    """In order of preference."""
    used: tuple[str, ...] = ()
    reason: str = ""
    """Why what was asked for is not used, a sentence for each; else empty."""

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(name for name in self.asked if name not in self.used)


class ReportedModel(Message, frozen=True, kw_only=True):
    """Three axes, kept apart: what serves, what is being done, how the last doing ended."""

    active: BundleRef | None = None
    phase: Phase = Phase.IDLE
    target: Version | None = None
    """What the update machine is working towards."""
    progress: float | None = None
    """0 to 1 of the bytes of FETCH."""
    last: Outcome | None = None
    port: int | None = None
    """Loopback port of the local API."""
    execution: Execution | None = None
    """Of the worker that serves; None where there is none, or it has yet to load the model."""


class DeviceFacts(Message, frozen=True, kw_only=True):
    """What the device found out about itself."""

    profile: str
    platform: str = "linux"
    arch: str
    core: str = ""
    """Microarchitecture, as in `profile.Cpu.core`."""
    features: tuple[str, ...] = ()
    """Those of `profile.FEATURES` that the CPU has."""
    cores: Count
    ram_bytes: Count
    board: str = ""
    os: str = ""
    python: str = ""
    agent: str = ""
    runtimes: dict[str, str] = {}
    """Installed runtime kind to version."""


class Capabilities(Message, frozen=True, kw_only=True):
    kind: str = "daemon"
    max_models: Count = limits.MAX_DESIRED_MODELS
    background: bool = True
    """Whether it runs while nobody looks at it (a phone's browser does not)."""


class Reported(Message, frozen=True, kw_only=True):
    at: Instant
    generation: Count
    """Of the newest desired state that the device has read."""
    models: dict[ModelName, ReportedModel] = {}
    device: DeviceFacts
    capabilities: Capabilities = Capabilities()


class Target(Message, frozen=True, kw_only=True):
    version: Version


class Desired(Message, frozen=True, kw_only=True):
    """The whole map: a model that is not in it is removed. Applying it twice is harmless."""

    generation: Count
    models: Annotated[
        dict[ModelName, Target], msgspec.Meta(max_length=limits.MAX_DESIRED_MODELS)
    ] = {}


class HostMetrics(Message, frozen=True, kw_only=True):
    cpu_percent: float | None = None
    """Of all cores together, 0 to 100."""
    ram_used_bytes: Count | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    disk_free_bytes: Count | None = None
    uptime_s: Count | None = None


class ProcessMetrics(Message, frozen=True, kw_only=True):
    rss_bytes: Count
    cpu_percent: float | None = None
    """Of one core, over the time since the sample before."""


class ModelHealth(Message, frozen=True, kw_only=True):
    version: Version
    worker: ProcessMetrics | None = None
    inferences: Count = 0
    """Since the worker started, as are the next three."""
    errors: Count = 0
    """Requests that the model or the worker failed."""
    rejected: Count = 0
    """Requests that were wrong, or one too many."""
    restarts: Count = 0
    p50_ms: float | None = None
    """Over the requests since the sample before, as are the next two."""
    p95_ms: float | None = None
    p99_ms: float | None = None


class Health(Message, frozen=True, kw_only=True):
    stream: str
    """Random at the birth of the device's queue; a sequence counts within its stream."""
    seq: Count
    at: Instant
    host: HostMetrics | None = None
    daemon: ProcessMetrics | None = None
    updater: ProcessMetrics | None = None
    models: dict[ModelName, ModelHealth] = {}


class Event(Message, frozen=True, kw_only=True):
    stream: str
    seq: Count
    at: Instant
    kind: EventKind
    text: str
    model: ModelName | None = None
    version: Version | None = None
    phase: Phase | None = None
    outcome: OutcomeKind | None = None


class Ack(Message, frozen=True, kw_only=True):
    """Highest sequence stored at the hub; what follows is still the device's to keep."""

    stream: str
    health: Count = 0
    event: Count = 0


class Fetch(Message, frozen=True, kw_only=True):
    """Ask for `length` bytes from `offset`. The reply carries this message's correlation data."""

    resource: str
    offset: Count = 0
    length: Annotated[int, msgspec.Meta(ge=0, le=limits.MAX_CHUNK_BYTES)] = limits.MAX_CHUNK_BYTES


Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=names.DIGEST_PATTERN)]


class Bench(Message, frozen=True, kw_only=True):
    """Ask a device to time a bundle that is signed for measuring and serves nobody."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    digest: Digest
    """Of the bundle's envelope."""
    budget_s: Annotated[float, msgspec.Meta(gt=0, le=limits.MAX_BENCH_S)]
    """How long to run it."""
    until: Instant
    """The order is void after that."""


class Benched(Message, frozen=True, kw_only=True):
    """The answer: figures, or why there are none."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    at: Instant
    reason: str = ""
    """Why there are no figures; empty where there are."""
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    """95% confidence interval of the median."""
    p95_ms: float | None = None
    runs: Count = 0
    rss_bytes: Count | None = None
    """Greatest resident memory of the process that ran it."""
    runtime: str = ""
    """Kind of the runtime, and its version behind a space."""


class ChunkStatus(enum.IntEnum):
    OK = 0
    NOT_FOUND = 1
    BUSY = 2


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A range of a resource. The hub may send less than was asked for."""

    status: ChunkStatus
    offset: int = 0
    total: int = 0
    """Length in bytes of the whole resource."""
    data: bytes = b""


_CHUNK: Final = struct.Struct(">4sB3xQQ")
_CHUNK_MAGIC: Final = b"EKC1"

T = TypeVar("T", bound=Message)


def cut(text: str) -> str:
    """`text`, cut to what a control message may carry."""
    limit = limits.MAX_TEXT_CHARS
    return text if len(text) <= limit else text[: limit - 1] + "…"


def encode(message: Message) -> bytes:
    """JSON of a message. Errors: `MessageRejected` where it is too long for the wire."""
    data = msgspec.json.encode(message)
    if len(data) > limits.MAX_CONTROL_BYTES:
        raise MessageRejected(
            f"a {type(message).__name__} of {len(data)} bytes is over {limits.MAX_CONTROL_BYTES}."
        )
    return data


def decode(data: bytes, kind: type[T]) -> T:
    """Parse a message of at most `limits.MAX_CONTROL_BYTES`. Errors: `MessageRejected`."""
    if len(data) > limits.MAX_CONTROL_BYTES:
        raise MessageRejected(f"a {kind.__name__} of {len(data)} bytes is too long.")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageRejected(f"not a {kind.__name__}: {error}.") from error


def encode_chunk(chunk: Chunk) -> bytes:
    """The frame of a chunk. Errors: `RuntimeError` over `limits.MAX_CHUNK_BYTES`."""
    if len(chunk.data) > limits.MAX_CHUNK_BYTES:
        raise RuntimeError(f"a chunk of {len(chunk.data)} bytes")
    return _CHUNK.pack(_CHUNK_MAGIC, chunk.status, chunk.offset, chunk.total) + chunk.data


def decode_chunk(data: bytes) -> Chunk:
    """Parse a blob frame: `EKC1`, status u8, 3 reserved bytes, offset u64, total u64, data.

    Big endian; the reserved bytes are sent as zero and not looked at. Errors: `MessageRejected`.
    """
    if not _CHUNK.size <= len(data) <= _CHUNK.size + limits.MAX_CHUNK_BYTES:
        raise MessageRejected(f"a blob frame of {len(data)} bytes.")
    magic, status, offset, total = _CHUNK.unpack_from(data)
    body = data[_CHUNK.size :]
    try:
        known = ChunkStatus(status)
    except ValueError as error:
        raise MessageRejected(f"a blob frame of status {status}.") from error
    if magic != _CHUNK_MAGIC or offset + len(body) > total:
        raise MessageRejected("a blob frame that does not hold together.")
    return Chunk(status=known, offset=offset, total=total, data=body)


def metadata_resource(filename: str) -> str:
    """Resource name of a TUF metadata file, such as `2.root.json`."""
    return f"metadata/{filename}"


def target_resource(path: str) -> str:
    """Resource name of a TUF target: the envelope at `NAME/VERSION/PROFILE.dsse.json`."""
    return f"targets/{path}"


def blob_resource(sha256: str) -> str:
    """Resource name of a bundle's file, by its SHA-256."""
    return f"blobs/{sha256}"
