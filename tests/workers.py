"""Real worker processes on real sockets, and the daemon's side of their control channel."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from bundles import KEY, SmallBundle

from edgekit_agent.control import (
    Channel,
    Failed,
    FromWorker,
    Ready,
    Serve,
    WarmupReport,
    socket_pair,
)

Kind = TypeVar("Kind")

PATIENCE_S = 60.0
"""Longest that a step may take on a busy machine before the test fails."""


def unpack(bundle: SmallBundle, directory: Path) -> str:
    """Write a bundle's files as a slot holds them; its digest."""
    for path, data in bundle.members(KEY):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return hashlib.sha256(bundle.envelope(KEY)).hexdigest()


@dataclass(frozen=True)
class Listeners:
    """What the daemon binds: they outlive workers."""

    tcp: socket.socket
    unix: socket.socket
    unix_path: Path

    @property
    def port(self) -> int:
        return int(self.tcp.getsockname()[1])

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self.tcp, self.unix


@contextlib.contextmanager
def listening(directory: Path, name: str = "api.sock") -> Iterator[Listeners]:
    tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
    unix = socket.socket(socket.AF_UNIX)
    path = directory / name
    unix.bind(str(path))
    unix.listen(128)
    with tcp, unix:
        yield Listeners(tcp, unix, path)


class StartedWorker:
    """A worker process, seen from the daemon."""

    def __init__(self, bundle: Path, digest: str, listeners: Listeners) -> None:
        ours, theirs = socket_pair()
        numbers = [theirs.fileno(), *(sock.fileno() for sock in listeners.sockets)]
        command = [sys.executable, "-m", "edgekit_agent.worker"]
        command += ["--bundle", str(bundle), "--digest", digest, "--control-fd", str(numbers[0])]
        for number in numbers[1:]:
            command += ["--listen-fd", str(number)]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=numbers)
        self._socket = ours
        self.channel: Channel[FromWorker] = Channel(ours, FromWorker)

    def expect(self, kind: type[Kind]) -> Kind:
        """The next message of this kind."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            message = self.channel.receive(1.0)
            if isinstance(message, kind):
                return message
            assert not isinstance(message, Failed), message.reason
        raise AssertionError(f"no {kind.__name__} within {PATIENCE_S} s")

    def serve(self) -> None:
        self.expect(Ready)
        self.channel.send(Serve())

    def die_as_daemon(self) -> None:
        """Close the control channel, as the kernel does for a dead daemon."""
        self._socket.close()

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self._socket.close()
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def working(bundle: Path, digest: str, listeners: Listeners) -> Iterator[StartedWorker]:
    """A worker that is told nothing yet; killed at the end."""
    worker = StartedWorker(bundle, digest, listeners)
    try:
        yield worker
    finally:
        worker.close()


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = PATIENCE_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def tcp_connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """One exchange of JSON on a connection that stays open where the server keeps it."""
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def feed(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A request to infer of the small bundles' input `x`."""
    data = [number for row in rows for number in row]
    shape = [len(rows), len(rows[0])]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]}


def warm_up(bundle: Path, digest: str, *options: str) -> tuple[int, WarmupReport]:
    """Run a warm-up to its end; its exit code and report."""
    command = [sys.executable, "-m", "edgekit_agent.warmup"]
    command += ["--bundle", str(bundle), "--digest", digest, *options]
    run = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    return run.returncode, msgspec.json.decode(run.stdout, type=WarmupReport)
