"""One example of every message, with every field set: the wire as the corpus records it."""

from __future__ import annotations

from datetime import datetime, timezone

from edgekit_contract.messages import (
    Ack,
    Bench,
    Benched,
    BundleRef,
    Capabilities,
    Chunk,
    ChunkStatus,
    Desired,
    DeviceFacts,
    Event,
    EventKind,
    Execution,
    Fetch,
    Health,
    HostMetrics,
    Message,
    ModelHealth,
    Outcome,
    OutcomeKind,
    Phase,
    ProcessMetrics,
    Reported,
    ReportedModel,
    Status,
    Target,
    blob_resource,
)

AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=timezone.utc)
DIGEST = "5f" * 32

_PROCESS = ProcessMetrics(rss_bytes=27_262_976, cpu_percent=1.5)
_HOST = HostMetrics(
    cpu_percent=12.5,
    ram_used_bytes=412_000_000,
    temperature_c=61.25,
    throttled=False,
    disk_free_bytes=20_000_000_000,
    uptime_s=86_400,
)
_MODEL = ModelHealth(
    version="1.2.0",
    worker=_PROCESS,
    inferences=1500,
    errors=2,
    rejected=1,
    restarts=1,
    p50_ms=4.5,
    p95_ms=6.25,
    p99_ms=9.0,
)
_FACTS = DeviceFacts(
    profile="raspberry-pi-5",
    platform="linux",
    arch="aarch64",
    core="cortex-a76",
    features=("asimd", "asimddp"),
    cores=4,
    ram_bytes=2_063_597_568,
    board="Raspberry Pi 5 Model B Rev 1.0",
    os="Debian GNU/Linux 12",
    python="3.11.2",
    agent="0.1.0",
    runtimes={"onnxruntime": "1.32.0"},
)
_OUTCOME = Outcome(
    kind=OutcomeKind.ROLLED_BACK,
    version="1.3.0",
    digest=DIGEST,
    phase=Phase.PROBATION,
    reason="error rate 0.4 over 0.05",
    at=AT,
)

MESSAGES: dict[str, Message] = {
    "status": Status(online=True, at=AT, instance="7b1e", agent="0.1.0", suspended=True),
    "status-will": Status(online=False),
    "reported": Reported(
        at=AT,
        generation=7,
        models={
            "digits": ReportedModel(
                active=BundleRef(version="1.2.0", digest=DIGEST, counter=3),
                phase=Phase.FETCH,
                target="1.4.0",
                progress=0.5,
                last=_OUTCOME,
                port=8080,
                execution=Execution(
                    asked=("XnnpackExecutionProvider", "CPUExecutionProvider"),
                    used=("CPUExecutionProvider",),
                    reason="XnnpackExecutionProvider: this onnxruntime is built without it.",
                ),
            )
        },
        device=_FACTS,
        capabilities=Capabilities(kind="daemon", max_models=4, background=True),
    ),
    "desired": Desired(generation=8, models={"digits": Target(version="1.4.0")}),
    "desired-nothing": Desired(generation=9),
    "health": Health(
        stream="c0ffee",
        seq=41,
        at=AT,
        host=_HOST,
        daemon=_PROCESS,
        updater=_PROCESS,
        models={"digits": _MODEL},
    ),
    "health-phone": Health(stream="c0ffee", seq=42, at=AT),
    "event": Event(
        stream="c0ffee",
        seq=12,
        at=AT,
        kind=EventKind.OUTCOME,
        text="1.3.0 rolled back: error rate 0.4 over 0.05",
        model="digits",
        version="1.3.0",
        phase=Phase.PROBATION,
        outcome=OutcomeKind.ROLLED_BACK,
    ),
    "ack": Ack(stream="c0ffee", health=41, event=12),
    "bench": Bench(id="5ca1ab1e", digest=DIGEST, budget_s=5.0, until=AT),
    "benched": Benched(
        id="5ca1ab1e",
        at=AT,
        median_ms=41.5,
        low_ms=41.25,
        high_ms=42.0,
        p95_ms=55.5,
        runs=118,
        rss_bytes=83_886_080,
        runtime="onnxruntime 1.32.0",
    ),
    "benched-refused": Benched(id="5ca1ab1f", at=AT, reason="digits is in probation"),
    "fetch": Fetch(resource=blob_resource(DIGEST), offset=65_536, length=4096),
}
"""By the name of the file in the corpus; what stands before a `-` is the topic's kind."""

CHUNKS: dict[str, Chunk] = {
    "chunk": Chunk(status=ChunkStatus.OK, offset=65_536, total=65_541, data=b"hello"),
    "chunk-empty-resource": Chunk(status=ChunkStatus.OK),
    "chunk-not-found": Chunk(status=ChunkStatus.NOT_FOUND),
    "chunk-busy": Chunk(status=ChunkStatus.BUSY),
}
