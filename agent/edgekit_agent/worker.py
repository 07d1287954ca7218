"""The worker: one model behind the local API, in a process that may crash, hang or be killed.

    python -m edgekit_agent.worker --bundle DIR --digest SHA256 --control-fd N --listen-fd T ...

Invariants: nothing is served that `trust.verify_directory` has not verified in this process; the
daemon hears Ready before it must say Serve, and Stats every second even while the model hangs,
for the thread that tells them does nothing else. When the daemon dies the worker finishes what is
in flight and follows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgekit_agent.api import Api
from edgekit_agent.classification import Classes
from edgekit_agent.connection import HttpResponse
from edgekit_agent.control import (
    Channel,
    Drain,
    Drained,
    Failed,
    PeerGone,
    Ready,
    Serve,
    Stats,
    ToWorker,
)
from edgekit_agent.inference import Runner
from edgekit_agent.oip import ServedModel
from edgekit_agent.server import Server
from edgekit_agent.slots import cache_of
from edgekit_agent.stats import Counters
from edgekit_contract.errors import BundleRejected, EdgekitError, Reason
from edgekit_contract.messages import cut
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.trust import VerifiedBundle, verify_directory
from edgekit_runtime.golden import read_golden
from edgekit_runtime.session import Session, open_session, options_for

__all__ = ["Loaded", "load", "main", "resident_bytes"]

STATS_S: Final = 1.0
ORPHAN_DRAIN_S: Final = 30.0
"""How long a worker without a daemon may take to finish what is in flight."""

_PLATFORMS: Final = {
    RuntimeKind.ONNXRUNTIME: "onnxruntime_onnx",
    RuntimeKind.LITERT: "litert_tflite",
    RuntimeKind.NULL: "null_json",
}
_DAMAGE: Final = frozenset({Reason.DIGEST_MISMATCH, Reason.MISSING_FILE})


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A verified bundle's model, run once."""

    bundle: VerifiedBundle
    model: ServedModel
    session: Session
    load_s: float
    first_run_s: float


def load(directory: Path, digest: str) -> Loaded:
    """Verify an unpacked bundle, load its model and run its first golden vector.

    Errors: `BundleRejected` and those of `edgekit_runtime.session`.
    """
    bundle = verify_directory(directory, envelope_sha256=digest)
    manifest = bundle.manifest
    started = time.monotonic()
    options = options_for(manifest, cache=cache_of(directory))
    session = open_session(manifest.runtime, directory / manifest.model, options)
    load_s = time.monotonic() - started
    first = msgspec.structs.replace(manifest.golden, count=1)
    vectors = read_golden(
        bundle.read(manifest.golden.path), first, manifest.inputs, manifest.outputs
    )
    started = time.monotonic()
    session.run(vectors[0].inputs)
    return Loaded(
        bundle=bundle,
        model=ServedModel(
            name=manifest.name,
            version=manifest.version,
            platform=_PLATFORMS.get(manifest.runtime, manifest.runtime.value),
            inputs=session.inputs,
            outputs=session.outputs,
            classes=_classes(bundle),
        ),
        session=session,
        load_s=load_s,
        first_run_s=time.monotonic() - started,
    )


def _classes(bundle: VerifiedBundle) -> dict[str, Classes]:
    manifest = bundle.manifest
    labels: list[str] = []
    if manifest.labels is not None:
        labels = bundle.read(manifest.labels).decode("utf-8", "replace").splitlines()
    softmaxed = {post.output for post in manifest.postprocess if post.softmax}
    return {
        spec.name: Classes(labels=labels, softmax=spec.name in softmaxed)
        for spec in manifest.outputs
    }


def resident_bytes() -> int:
    """Resident memory of this process. Source: proc(5), /proc/pid/statm."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """The control thread's side: it alone reads and writes the channel."""

    def __init__(
        self, channel: Channel[ToWorker], loaded: Loaded, listeners: Sequence[socket.socket]
    ) -> None:
        self._channel, self._loaded = channel, loaded
        self._counters = Counters(random.Random())
        self._server = Server(listeners)
        self._runner: Runner[HttpResponse] = Runner(
            post=self._server.post, last_s=loaded.first_run_s
        )

    def run(self) -> None:
        """Obey the daemon until a drain is over. A lost daemon is a drain, too."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._server.drain())
        try:
            self._channel.send(
                Ready(
                    load_s=self._loaded.load_s,
                    rss_bytes=resident_bytes(),
                    execution=self._loaded.session.execution,
                )
            )
            self._obey()
            self._channel.send(Drained())
        except PeerGone:
            self._server.drain()
            if not self._server.drained.wait(ORPHAN_DRAIN_S):
                os._exit(1)  # the interpreter's own end would wait for what hangs

    def _obey(self) -> None:
        next_s = time.monotonic() + STATS_S
        while not self._server.drained.is_set():
            left_s = max(0.0, next_s - time.monotonic())
            if self._server.draining:
                # The daemon has nothing more to say; what matters now is the end of the drain.
                self._server.drained.wait(left_s)
            else:
                self._heed(self._channel.receive(left_s))
            if time.monotonic() >= next_s:
                self._tell()
                next_s += STATS_S

    def _heed(self, message: object) -> None:
        match message:
            case Serve():
                self._server.start(
                    Api(
                        model=self._loaded.model,
                        session=self._loaded.session,
                        runner=self._runner,
                        counters=self._counters,
                        now_s=self._server.now_s,
                    )
                )
            case Drain():
                self._server.drain()

    def _tell(self) -> None:
        counted = self._counters.snapshot()
        self._channel.send(
            Stats(
                inferences=counted.inferences,
                errors=counted.errors,
                rejected=counted.rejected,
                p50_ms=counted.p50_ms,
                p95_ms=counted.p95_ms,
                p99_ms=counted.p99_ms,
                busy_since_s=self._runner.busy_s,
                rss_bytes=resident_bytes(),
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="edgekit_agent.worker", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, action="append", required=True)
    given = parser.parse_args(arguments)
    channel: Channel[ToWorker] = Channel(socket.socket(fileno=given.control_fd), ToWorker)
    listeners = [socket.socket(fileno=number) for number in given.listen_fd]
    try:
        loaded = load(given.bundle, given.digest)
    except Exception as error:
        damaged = isinstance(error, BundleRejected) and error.reason in _DAMAGE
        reason = (
            str(error) if isinstance(error, EdgekitError) else f"{type(error).__name__}: {error}"
        )
        with contextlib.suppress(PeerGone):
            channel.send(Failed(reason=cut(reason), damaged=damaged))
        return 1
    Worker(channel, loaded, listeners).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
