"""What the local API costs over a bare `session.run`, in the same run.

    python benchmarks/local_api.py [--rounds N] [--markdown]

Two models, built by `edgekit build` and served by a real worker process: `digits` (a trained CNN,
3 KB in, 40 bytes out) and `photo` (an average over 600 KB in, so that next to nothing but the API
is measured). Each round asks every way in turn, so that a noisy machine disturbs all alike. The
client prepares its requests beforehand and does not parse the answers: what is measured is the
worker, the socket and a minimum of client. `edgekit_runtime` runs the same file in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
from onnx import TensorProto, helper

import edgekit_profiles
from edgekit.build import BuildRequest, build
from edgekit_agent.control import Channel, Drain, FromWorker, Ready, Serve, Stats, socket_pair
from edgekit_contract.archive import open_archive
from edgekit_contract.envelope import ENVELOPE_PATH, decode
from edgekit_contract.manifest import Manifest
from edgekit_runtime.session import open_session, options_for

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
PER_ROUND = 20
WARM_REQUESTS = 50


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    model: Path
    validation: Path | None
    input: str
    feed: np.ndarray


def cases(directory: Path) -> list[Case]:
    photo = np.random.default_rng(1).random((1, 3, 224, 224), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["photo"], ["mean"])],
        "photo",
        [helper.make_tensor_value_info("photo", TensorProto.FLOAT, photo.shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 3, 1, 1])],
    )
    path = directory / "photo.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    with np.load(DIGITS / "validation.npz") as data:
        image = data["image"][:1]
    return [
        Case(
            name="digits",
            model=DIGITS / "digits.onnx",
            validation=DIGITS / "validation.npz",
            input="image",
            feed=image,
        ),
        Case(name="photo", model=path, validation=None, input="photo", feed=photo),
    ]


def unpacked(case: Case, directory: Path) -> tuple[Path, str, Manifest]:
    """The case's float32 bundle as a slot holds it, its digest and manifest."""
    result = build(
        BuildRequest(
            model=case.model,
            profiles=(edgekit_profiles.load("demo-small"),),
            name=case.name,
            version="1.0",
            output=directory,
            validation=None if case.validation is None else str(case.validation),
            recipes=("float32*",),
            search_time_s=2.0,
        )
    )
    archive = open_archive(result.built[0].bundle.path)
    slot = directory / case.name
    for path in archive.entries:
        (slot / path).parent.mkdir(parents=True, exist_ok=True)
        (slot / path).write_bytes(b"".join(archive.pieces(path)))
    raw = (slot / ENVELOPE_PATH).read_bytes()
    return slot, hashlib.sha256(raw).hexdigest(), decode(raw).manifest


@dataclass(frozen=True, kw_only=True)
class Worker:
    port: int
    unix_path: Path
    ready: Ready
    channel: Channel[FromWorker]


@contextlib.contextmanager
def worker(slot: Path, digest: str, directory: Path) -> Iterator[Worker]:
    ours, theirs = socket_pair()
    unix_path = directory / f"{slot.name}.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(unix_path))
        unix.listen()
        numbers = [theirs.fileno(), tcp.fileno(), unix.fileno()]
        command = [sys.executable, "-m", "edgekit_agent.worker", "--bundle", str(slot)]
        command += ["--digest", digest, "--control-fd", str(numbers[0])]
        command += ["--listen-fd", str(numbers[1]), "--listen-fd", str(numbers[2])]
        with subprocess.Popen(command, pass_fds=numbers) as process:
            theirs.close()
            channel: Channel[FromWorker] = Channel(ours, FromWorker)
            ready = channel.receive(60.0)
            if not isinstance(ready, Ready):
                raise RuntimeError(f"the worker said {ready}")
            channel.send(Serve())
            yield Worker(
                port=tcp.getsockname()[1], unix_path=unix_path, ready=ready, channel=channel
            )
            channel.send(Drain())
            process.wait(30)
    ours.close()


class Client:
    """A keep-alive connection that sends one prepared request and reads whole answers."""

    def __init__(self, sock: socket.socket, request: bytes) -> None:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._request = sock, request

    def __call__(self) -> None:
        self._socket.sendall(self._request)
        answer = self._socket.recv(1 << 20)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(answer[:300])
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        while len(body) < length:
            body += self._socket.recv(1 << 20)


def requests(case: Case) -> dict[str, bytes]:
    """The two encodings of one feed."""
    entry = {"name": case.input, "datatype": "FP32", "shape": case.feed.shape}
    text = json.dumps({"inputs": [entry | {"data": case.feed.ravel().tolist()}]}).encode()
    head = json.dumps(
        {
            "inputs": [entry | {"parameters": {"binary_data_size": case.feed.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    head += b" " * (-len(head) % 8)
    line = f"POST /v2/models/{case.name}/infer HTTP/1.1\r\nhost: device\r\n"
    data = head + case.feed.tobytes()
    return {
        "json": f"{line}content-length: {len(text)}\r\n\r\n".encode() + text,
        "binary": (
            f"{line}content-length: {len(data)}\r\n"
            f"inference-header-content-length: {len(head)}\r\n\r\n"
        ).encode()
        + data,
    }


def measure(case: Case, directory: Path, *, rounds: int) -> dict[str, Any]:
    slot, digest, manifest = unpacked(case, directory)
    session = open_session(manifest.runtime, slot / manifest.model, options_for(manifest))
    feeds = {case.input: case.feed}
    with worker(slot, digest, directory) as started, contextlib.ExitStack() as stack:
        ways: dict[str, Callable[[], object]] = {"session.run": lambda: session.run(feeds)}
        for encoding, request in requests(case).items():
            tcp = stack.enter_context(socket.create_connection(("127.0.0.1", started.port)))
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.connect(str(started.unix_path))
            ways[f"{encoding} over TCP"] = Client(tcp, request)
            ways[f"{encoding} over Unix"] = Client(unix, request)
        times_s: dict[str, list[float]] = {way: [] for way in ways}
        for call in ways.values():
            for _ in range(WARM_REQUESTS):
                call()
        for _ in range(rounds):
            for way, call in ways.items():
                for _ in range(PER_ROUND):
                    began = time.perf_counter()
                    call()
                    times_s[way].append(time.perf_counter() - began)
        stats = started.channel.receive(5.0)
        while isinstance(newer := started.channel.receive(1.5), Stats):
            stats = newer
            break
    bare_us = machine.spread([t * 1e6 for t in times_s["session.run"]])
    found = {}
    for way, taken in times_s.items():
        us = machine.spread([t * 1e6 for t in taken])
        found[way] = {
            **{f"{name}_us": round(value, 1) for name, value in us.items()},
            "overhead_us": round(us["p50"] - bare_us["p50"], 1),
            "ratio": round(us["p50"] / bare_us["p50"], 2),
        }
    return {
        "input_bytes": case.feed.nbytes,
        "requests_each": rounds * PER_ROUND,
        "worker_rss_mib": round(stats.rss_bytes / 2**20, 1) if isinstance(stats, Stats) else None,
        "ways": found,
    }


def markdown(results: dict[str, Any]) -> str:
    rows = ["| model | way | median µs | 95% µs | over `session.run` µs | ratio |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for name, result in results.items():
        for way, found in result["ways"].items():
            rows.append(
                f"| {name} ({result['input_bytes'] / 1000:.0f} KB in) | {way} | "
                f"{found['p50_us']:.0f} | {found['p95_us']:.0f} | {found['overhead_us']:.0f} | "
                f"{found['ratio']:.1f} |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="of 20 requests each way")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        results = {
            case.name: measure(case, directory, rounds=given.rounds) for case in cases(directory)
        }
    if given.markdown:
        print(markdown(results))
    else:
        machine.emit(results)


if __name__ == "__main__":
    main()
