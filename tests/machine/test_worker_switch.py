"""A switch from one worker to the next on the same listening sockets refuses no request."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import null_bundle
from workers import (
    PATIENCE_S,
    Listeners,
    StartedWorker,
    UnixConnection,
    ask,
    feed,
    listening,
    tcp_connection,
    unpack,
    working,
)

from edgekit_agent.control import Drain, Drained, Ready, Serve
from edgekit_agent.endpoints import listen_tcp

INFER = "/v2/models/tiny/infer"


class Client:
    """Asks without a pause until it is stopped; notes who answered and what failed."""

    def __init__(
        self, connect: Callable[[], http.client.HTTPConnection], *, keep_alive: bool
    ) -> None:
        self._connect, self._keep_alive = connect, keep_alive
        self._stop = threading.Event()
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self.last = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = self._connect()
        while not self._stop.is_set():
            try:
                status, answer = ask(connection, "POST", INFER, feed([[1, 2, 3, 4]]))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if status != 200 or answer["outputs"][0]["data"] != [10.0]:
                self.failures.append(json.dumps(answer))
            else:
                self.last = answer["model_version"]
                self.versions[self.last] += 1
            if not self._keep_alive:
                connection.close()
        connection.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_switching_under_load_fails_no_request(tmp_path: Path) -> None:
    slots = {}
    for version in ("1.0", "1.1"):
        slots[version] = unpack(null_bundle(version=version), tmp_path / version)

    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(listening(tmp_path))

        def start(version: str) -> StartedWorker:
            return stack.enter_context(working(tmp_path / version, slots[version], listeners))

        current = start("1.0")
        current.serve()
        clients = [
            Client(lambda: tcp_connection(listeners.port), keep_alive=True),
            Client(lambda: UnixConnection(listeners.unix_path), keep_alive=True),
            Client(lambda: tcp_connection(listeners.port), keep_alive=False),
            Client(lambda: UnixConnection(listeners.unix_path), keep_alive=False),
        ]
        for client in clients:
            stack.callback(client.stop)
        for version in ("1.1", "1.0", "1.1"):
            following = start(version)
            following.expect(Ready)
            current.channel.send(Drain())
            following.channel.send(Serve())
            current.expect(Drained)
            assert current.exit_code() == 0
            current = following
            for client in clients:
                seen = client.versions[version]
                while client.versions[version] == seen and not client.failures:
                    threading.Event().wait(0.01)
        for client in clients:
            client.stop()
        assert [client.failures for client in clients] == [[], [], [], []]
        assert {client.last for client in clients} == {"1.1"}


def test_drain_closes_idle_connections_and_answers_the_busy(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        busy, idle = tcp_connection(listeners.port), tcp_connection(listeners.port)
        for connection in (busy, idle):
            assert ask(connection, "GET", "/v2/health/live")[0] == 200
            assert connection.sock is not None
        worker.channel.send(Drain())
        closing = None
        while closing is None:
            busy.request("POST", INFER, json.dumps(feed([[1, 2, 3, 4]])))
            response = busy.getresponse()
            assert response.status == 200
            closing = response.headers["connection"]
            response.read()
        assert closing == "close"
        assert idle.sock.recv(1) == b""
        worker.expect(Drained)
        busy.close()
        idle.close()


@pytest.mark.parametrize("body_bytes_before", [0, 20], ids=["head only", "half a body"])
def test_request_on_its_way_during_a_drain_is_answered(
    tmp_path: Path, body_bytes_before: int
) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    body = json.dumps(feed([[1, 2, 3, 4]])).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: edge\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        with _connected(listeners) as sock:
            sock.sendall(head + body[:body_bytes_before])
            _exchange_until_served(listeners)
            worker.channel.send(Drain())
            threading.Event().wait(1.5)  # longer than an idle connection is kept
            sock.sendall(body[body_bytes_before:])
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert (response.status, response.headers["connection"]) == (200, "close")
        worker.expect(Drained)


def test_a_worker_that_lost_its_daemon_gives_the_port_back_while_it_finishes(
    tmp_path: Path,
) -> None:
    """Else the next daemon would have to take another port."""
    digest = unpack(null_bundle(), tmp_path / "slot")
    body = json.dumps(feed([[1, 2, 3, 4]])).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: edge\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        port = listeners.port
        with _connected(listeners) as sock:
            sock.sendall(head + body[:20])
            _exchange_until_served(listeners)
            for ours in listeners.sockets:
                ours.close()
            worker.die_as_daemon()
            for _ in range(200):
                if following := listen_tcp(port):
                    following.close()
                    break
                threading.Event().wait(0.05)
            else:
                raise AssertionError(f"port {port} is still taken")
            sock.sendall(body[20:])
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert (response.status, response.headers["connection"]) == (200, "close")
        worker.exit_code()


def _connected(listeners: Listeners) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listeners.port), timeout=PATIENCE_S)


def _exchange_until_served(listeners: Listeners) -> None:
    """After this the worker has read what was sent before."""
    connection = tcp_connection(listeners.port)
    assert ask(connection, "GET", "/v2/health/live")[0] == 200
    connection.close()
