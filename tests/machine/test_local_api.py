"""The local API over real sockets: routes, errors, framing, bounds."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import onnx_bundle
from local_apis import Echo, LocalApi, null_session, serving, session_of
from workers import PATIENCE_S, ask, feed, tcp_connection

from edgekit_contract import limits

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[LocalApi]:
    with serving(session_of(onnx_bundle(), tmp_path)) as started:
        yield started


@pytest.fixture
def connection(api: LocalApi) -> Iterator[http.client.HTTPConnection]:
    opened = tcp_connection(api.port)
    yield opened
    opened.close()


def post(data: bytes, **headers: str) -> bytes:
    """A raw request to infer."""
    lines = [f"POST {INFER} HTTP/1.1", "host: edge", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def raw(port: int, *pieces: bytes, half_close: bool = False) -> list[tuple[int, bytes]]:
    """Send bytes as they are; all answers until the server closes. The last one must close."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        for piece in pieces:
            sock.sendall(piece)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while piece := sock.recv(65_536):
            received += piece
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        answers.append((int(head.split()[1]), rest[:length]))
        received = rest[length:]
    return answers


def test_server_and_model_describe_themselves(connection: http.client.HTTPConnection) -> None:
    status, server = ask(connection, "GET", "/v2")
    assert status == 200
    assert server["name"] == "edgekit-agent"
    assert server["extensions"] == ["binary_tensor_data", "classification"]
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1.0", "/v2/models/tiny?x=1"):
        status, model = ask(connection, "GET", path)
        assert (status, model["inputs"]) == (
            200,
            [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        )
    assert ask(connection, "GET", "/v2/health/live") == (200, {"live": True})
    assert ask(connection, "GET", "/v2/health/ready") == (200, {"ready": True})
    assert ask(connection, "GET", "/v2/models/tiny/ready") == (200, {"name": "tiny", "ready": True})


def test_infer_answers_in_json(connection: http.client.HTTPConnection) -> None:
    for path in (INFER, "/v2/models/tiny/versions/1.0/infer"):
        assert ask(connection, "POST", path, feed([[1, 2]]) | {"id": "7"}) == (
            200,
            {
                "model_name": "tiny",
                "model_version": "1.0",
                "id": "7",
                "outputs": [
                    {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 3.0, 2.0]}
                ],
            },
        )


def test_infer_takes_and_gives_binary_data(connection: http.client.HTTPConnection) -> None:
    rows = np.arange(200_000, dtype=np.float32).reshape(-1, 2)
    entry = {"name": "x", "datatype": "FP32", "shape": list(rows.shape)}
    head = json.dumps(
        {
            "inputs": [entry | {"parameters": {"binary_data_size": rows.nbytes}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    connection.request(
        "POST",
        INFER,
        head + rows.tobytes(),
        {"Inference-Header-Content-Length": str(len(head)), "Expect": "100-continue"},
    )
    response = connection.getresponse()
    body = response.read()
    json_bytes = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:json_bytes])["outputs"]
    assert response.headers["Content-Type"] == "application/octet-stream"
    got = np.frombuffer(body[json_bytes:], np.float32).reshape(output["shape"])
    want = np.maximum(rows @ np.array([[1, -1, 0], [0, 2, 1]], np.float32), 0)
    assert np.array_equal(got, want)


ERRORS = [
    ("GET", "/", None, 404),
    ("GET", "/v2/models/other", None, 404),
    ("POST", "/v2/models/tiny/versions/9/infer", feed([[1, 2]]), 404),
    ("POST", "/v2/models/%2e%2e/infer", feed([[1, 2]]), 404),
    ("POST", "/v2", {}, 405),
    ("GET", INFER, None, 405),
    ("POST", INFER, {}, 400),
    ("POST", INFER, feed([[1, 2, 3]]), 400),
    ("POST", INFER, {"inputs": []}, 400),
]


@pytest.mark.parametrize(("method", "path", "body", "want"), ERRORS)
def test_error_is_one_sentence_and_the_connection_stays(
    connection: http.client.HTTPConnection, method: str, path: str, body: object, want: int
) -> None:
    status, answer = ask(connection, method, path, body)
    assert (status, list(answer)) == (want, ["error"])
    assert answer["error"].endswith(".")
    assert ask(connection, "GET", "/v2/health/live") == (200, {"live": True})


@pytest.mark.parametrize(
    ("headers", "want"),
    [
        ({"content-encoding": "gzip"}, b"uncompressed"),
        ({"inference-header-content-length": "-1"}, b"not a number"),
        ({"inference-header-content-length": "9" * 30}, b"not a number"),
        ({"inference-header-content-length": "9999"}, b"9999"),
    ],
)
def test_header_that_makes_no_sense_is_rejected(
    api: LocalApi, headers: dict[str, str], want: bytes
) -> None:
    data = json.dumps(feed([[1, 2]])).encode()
    ((status, body),) = raw(api.port, post(data, connection="close", **headers))
    assert status == 400
    assert want in body


def test_head_is_answered_without_a_body(connection: http.client.HTTPConnection) -> None:
    connection.request("HEAD", "/v2/health/live")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert ask(connection, "GET", "/v2/health/live")[0] == 200


def test_chunked_body_is_understood(connection: http.client.HTTPConnection) -> None:
    text = json.dumps(feed([[1, 2]])).encode()
    connection.request("POST", INFER, iter([text[:5], text[5:]]), encode_chunked=True)
    assert connection.getresponse().status == 200


def test_pipelined_requests_are_answered_in_order(api: LocalApi) -> None:
    texts = [json.dumps(feed([[i, 0]]) | {"id": str(i)}).encode() for i in range(50)]
    stream = b"".join(post(text) for text in texts[:-1]) + post(texts[-1], connection="close")
    answers = raw(api.port, stream)
    assert [json.loads(body)["id"] for _, body in answers] == [str(i) for i in range(50)]
    assert {status for status, _ in answers} == {200}


def test_http_1_0_client_is_answered_and_closed(api: LocalApi) -> None:
    assert raw(api.port, b"GET /v2/health/live HTTP/1.0\r\n\r\n") == [(200, b'{"live":true}')]


def test_offer_to_upgrade_is_declined_by_an_answer(api: LocalApi) -> None:
    offer = b"host: edge\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    assert raw(api.port, b"GET /v2/health/live HTTP/1.1\r\n" + offer) == [(200, b'{"live":true}')]


def test_expectation_is_met_before_the_body_is_sent(api: LocalApi) -> None:
    text = json.dumps(feed([[1, 2]])).encode()
    head, body = post(text, expect="100-continue").split(b"\r\n\r\n", 1)
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE_S) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


TOO_LONG = str(limits.MAX_REQUEST_BYTES + 1).encode()
MALFORMED = {
    "no HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "length that is no number": (
        b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: ten\r\n\r\n",
        400,
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        400,
    ),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        400,
    ),
    "endless head": (b"GET / HTTP/1.1\r\nx: " + b"y" * 300_000, 431),
    "announced too long": (b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: " + TOO_LONG, 413),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_request_is_refused_and_closed(api: LocalApi, case: str) -> None:
    data, want = MALFORMED[case]
    ((status, body),) = raw(api.port, data if want == 431 else data + b"\r\n\r\n")
    assert status == want
    assert list(json.loads(body)) == ["error"]
    assert api.counters.snapshot().rejected == 1


def test_chunked_body_over_the_bound_is_refused_while_it_arrives(api: LocalApi) -> None:
    chunk = b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n"
    head = b"POST / HTTP/1.1\r\nhost: e\r\ntransfer-encoding: chunked\r\n\r\n"
    count = limits.MAX_REQUEST_BYTES // (1 << 20) + 1
    ((status, _),) = raw(api.port, head, *[chunk] * count)
    assert status == 413


def test_body_shorter_than_its_length_is_refused_where_the_client_ends(api: LocalApi) -> None:
    whole = post(json.dumps(feed([[1, 2]])).encode())
    ((status, body),) = raw(api.port, whole[:-3], half_close=True)
    assert status == 400
    assert b"ended before its length" in body


def test_body_longer_than_its_length_is_no_second_answer_of_sense(api: LocalApi) -> None:
    whole = post(json.dumps(feed([[1, 2]])).encode())
    (first, _), (second, _) = raw(api.port, whole + b"}}}}\r\n\r\n")
    assert (first, second) == (200, 400)


def test_half_closed_client_still_gets_its_answers(api: LocalApi) -> None:
    whole = post(json.dumps(feed([[1, 2]])).encode())
    answers = raw(api.port, whole * 3, half_close=True)
    assert [status for status, _ in answers] == [200, 200, 200]


def test_vanished_clients_leave_nothing_behind(tmp_path: Path) -> None:
    with serving(null_session(tmp_path, delay_s=0.01), last_s=1.0) as api:
        whole = post(json.dumps(feed([[1, 2, 3, 4]])).encode())
        for cut in range(0, len(whole) + 1, 16):
            with socket.create_connection(("127.0.0.1", api.port)) as sock:
                sock.sendall(whole[:cut])
        connection = tcp_connection(api.port)
        assert ask(connection, "POST", INFER, feed([[1, 2, 3, 4]]))[0] == 200
        connection.close()
    assert api.server._bodies_bytes == 0
    assert not api.server._connections


def test_too_many_waiting_inferences_are_turned_away(tmp_path: Path) -> None:
    clients = limits.MAX_QUEUED_INFERENCES + 20
    statuses: list[int] = []
    with serving(null_session(tmp_path, delay_s=0.05), last_s=1.0) as api:
        start = threading.Barrier(clients)

        def one() -> None:
            connection = tcp_connection(api.port)
            connection.connect()
            start.wait()
            statuses.append(ask(connection, "POST", INFER, feed([[1, 2, 3, 4]]))[0])
            connection.close()

        threads = [threading.Thread(target=one) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # an answer is counted when it has been sent, which its reader may see first
        deadline = time.monotonic() + PATIENCE_S
        while (counted := api.counters.snapshot()).inferences != statuses.count(200):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= limits.MAX_QUEUED_INFERENCES
    assert (counted.inferences, counted.rejected) == (statuses.count(200), statuses.count(503))
    assert counted.errors == 0, "a burst of clients does not speak against the release"


def test_more_connections_than_the_bound_wait_their_turn(tmp_path: Path) -> None:
    with serving(null_session(tmp_path)) as api:
        held = [tcp_connection(api.port) for _ in range(limits.MAX_CONNECTIONS)]
        for connection in held:
            assert ask(connection, "GET", "/v2/health/live")[0] == 200
        late = tcp_connection(api.port)
        late.request("GET", "/v2/health/live")
        late.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.sock.recv(1)
        late.sock.settimeout(PATIENCE_S)
        held.pop().close()
        assert late.getresponse().status == 200
        for connection in [late, *held]:
            connection.close()


def test_large_bodies_beyond_the_memory_bound_are_turned_away(api: LocalApi) -> None:
    head = b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: %d\r\n\r\n" % limits.MAX_REQUEST_BYTES
    held = []
    for _ in range(limits.MAX_BODIES_BYTES // limits.MAX_REQUEST_BYTES):
        sock = socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE_S)
        sock.sendall(head + b"x")
        held.append(sock)
    connection = tcp_connection(api.port)
    assert ask(connection, "GET", "/v2/health/live")[0] == 200
    assert raw(api.port, head)[0][0] == 503
    for sock in held:
        sock.close()
    for _ in range(1_000):  # the server hears of the closing in its own time
        status, _ = ask(connection, "POST", INFER, feed([[1, 2]]))
        if status == 200:
            break
    assert status == 200
    connection.close()


def test_nan_is_an_error_of_the_model_in_json_only() -> None:
    with serving(Echo({"x": "float32"})) as api:
        data = np.array([[np.nan]], np.float32).tobytes()
        entry = {"name": "x", "datatype": "FP32", "shape": [1, 1]}
        head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": 4}}]}).encode()
        as_json = post(head + data, inference_header_content_length=str(len(head)))
        (status, body), (end, _) = raw(
            api.port, as_json + b"GET /v2 HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\r\n"
        )
        assert (status, end) == (500, 200)
        assert b"binary_data" in body
        assert api.counters.snapshot().errors == 1


def test_session_that_breaks_its_contract_fails_one_request_only() -> None:
    class Broken(Echo):
        def run(self, feeds: object) -> dict[str, np.ndarray]:
            raise ZeroDivisionError("oops")

    with serving(Broken({"x": "float32"})) as api:
        connection = tcp_connection(api.port)
        status, answer = ask(connection, "POST", INFER, feed([[1, 2]]))
        assert (status, "ZeroDivisionError" in answer["error"]) == (500, True)
        assert ask(connection, "GET", "/v2/health/live")[0] == 200
        connection.close()
