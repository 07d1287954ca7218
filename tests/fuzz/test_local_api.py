"""Bytes that nobody should send, at the local API's real sockets."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_apis import Echo, LocalApi, serving
from workers import PATIENCE_S, ask, feed, tcp_connection

INFER = "/v2/models/tiny/infer"
_TEXT = json.dumps(feed([[1, 2]])).encode()
_CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (_TEXT[:9], _TEXT[9:]))
REQUESTS = (
    b"GET /v2/health/live HTTP/1.1\r\nhost: e\r\n\r\n",
    b"GET /v2/models/tiny HTTP/1.1\r\nhost: e\r\naccept: */*\r\n\r\n",
    f"POST {INFER} HTTP/1.1\r\nhost: e\r\ncontent-length: {len(_TEXT)}\r\n\r\n".encode() + _TEXT,
    f"POST {INFER} HTTP/1.1\r\nhost: e\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    + _CHUNKS
    + b"0\r\n\r\n",
    b"POST /v2 HTTP/1.1\r\nhost: e\r\ncontent-length: 3\r\n\r\nabc",
)
WANT = (200, 200, 200, 200, 405)

relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@pytest.fixture(scope="module")
def api() -> Iterator[LocalApi]:
    with serving(Echo({"x": "float32"})) as started:
        yield started


def exchange(port: int, pieces: list[bytes]) -> list[tuple[int, bytes]]:
    """Send pieces, half-close, and parse all that comes back as HTTP answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has closed on nonsense already; what it said is still to be read
        received = bytearray()
        try:
            while piece := sock.recv(65_536):
                received += piece
        except ConnectionResetError:
            pass
    answers = []
    while received:
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        if head == b"HTTP/1.1 100 Continue":
            received = bytearray(rest)
            continue
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 ")
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        length = int(fields[b"content-length"])
        answers.append((int(lines[0].split()[1]), rest[:length]))
        received = bytearray(rest[length:])
    return answers


def is_well(port: int) -> bool:
    connection = tcp_connection(port)
    try:
        return ask(connection, "GET", "/v2/health/live") == (200, {"live": True})
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@relaxed
@given(data=st.data())
def test_requests_in_any_pieces_get_the_same_answers(api: LocalApi, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=12))
    stream = b"".join(REQUESTS[i] for i in chosen)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    answers = exchange(api.port, pieces)
    assert [status for status, _ in answers] == [WANT[i] for i in chosen]


@relaxed
@given(data=st.data())
def test_mutated_requests_get_json_or_nothing(api: LocalApi, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(REQUESTS) - 1), min_size=1, max_size=4))
    stream = bytearray(b"".join(REQUESTS[i] for i in chosen))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    cut = data.draw(st.integers(0, len(stream)))
    answers = exchange(api.port, [bytes(stream[:cut]), bytes(stream[cut:])])
    for status, body in answers:
        if body:  # HEAD has none
            json.loads(body)
        assert 200 <= status < 600
    assert is_well(api.port)


@relaxed
@given(noise=st.binary(max_size=2_000))
def test_noise_is_refused(api: LocalApi, noise: bytes) -> None:
    for status, _ in exchange(api.port, [noise]):
        assert status >= 400 or noise.lstrip().startswith((b"GET", b"HEAD"))
    assert is_well(api.port)


def test_nothing_is_left_of_it_all(api: LocalApi) -> None:
    assert is_well(api.port)
    assert api.server._bodies_bytes == 0
    assert api.counters.snapshot().errors == 0
