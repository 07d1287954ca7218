"""The worker as a process: its control channel, its health, its end."""

from __future__ import annotations

import signal
from pathlib import Path

import msgspec
import pytest
from bundles import SmallBundle, litert_bundle, null_bundle, onnx_bundle
from parts import need_package
from workers import UnixConnection, ask, feed, listening, tcp_connection, unpack, working

from edgekit_agent.control import Drain, Drained, Failed, Ready, Serve, Stats

INFER = "/v2/models/tiny/infer"


def slow_bundle(delay_s: float) -> SmallBundle:
    """The null model, taking its time."""
    bundle = null_bundle()
    model = msgspec.json.decode(bundle.files["files/model.json"]) | {"delay_s": delay_s}
    return bundle.with_files(bundle.files | {"files/model.json": msgspec.json.encode(model)})


def fragile_bundle(fail_above: float) -> SmallBundle:
    """The null model, failing on large numbers."""
    bundle = null_bundle()
    model = msgspec.json.decode(bundle.files["files/model.json"]) | {"fail_above": fail_above}
    return bundle.with_files(bundle.files | {"files/model.json": msgspec.json.encode(model)})


@pytest.mark.parametrize(
    ("make", "rows", "want"),
    [
        (onnx_bundle, [[1, 2]], [1.0, 3.0, 2.0]),
        (litert_bundle, [[1, -2, 3], [-1, 0, 4]], [1.0, 0.0, 3.0, 0.0, 0.0, 4.0]),
        (null_bundle, [[1, 2, 3, 4], [0, 0, 0, 1]], [10.0, 1.0]),
    ],
    ids=["onnxruntime", "litert", "null"],
)
def test_each_runtime_answers_on_both_sockets(tmp_path: Path, make, rows, want) -> None:
    need_package("ai_edge_litert", install="'edgekit[tflite]'")
    digest = unpack(make(), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        ready = worker.expect(Ready)
        assert ready.rss_bytes > 0
        worker.channel.send(Serve())
        for connection in (tcp_connection(listeners.port), UnixConnection(listeners.unix_path)):
            status, answer = ask(connection, "POST", INFER, feed(rows))
            assert (status, answer["outputs"][0]["data"]) == (200, want)
            connection.close()
        worker.channel.send(Drain())
        worker.expect(Drained)
        assert worker.exit_code() == 0


def test_requests_before_serve_wait_and_are_answered(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        early = tcp_connection(listeners.port)
        early.request("GET", "/v2/health/live")
        worker.serve()
        assert early.getresponse().read() == b'{"live":true}'
        early.close()


def test_changed_model_file_is_reported_as_damage(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    model = tmp_path / "slot" / "files" / "model.json"
    model.write_bytes(model.read_bytes()[:-1] + b" ")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        failed = worker.expect(Failed)
        assert failed.damaged
        assert "files/model.json" in failed.reason
        assert worker.exit_code() == 1


def test_model_that_does_not_load_is_no_damage(tmp_path: Path) -> None:
    bundle = onnx_bundle()
    digest = unpack(
        bundle.with_files(bundle.files | {"files/model.onnx": b"no model"}), tmp_path / "slot"
    )
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        failed = worker.expect(Failed)
        assert not failed.damaged
        assert "does not load" in failed.reason
        assert worker.exit_code() == 1


def test_stats_count_inferences_errors_and_rejects(tmp_path: Path) -> None:
    digest = unpack(fragile_bundle(fail_above=100), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        connection = tcp_connection(listeners.port)
        statuses = [
            ask(connection, "POST", INFER, body)[0]
            for body in (feed([[1, 2, 3, 4]]), feed([[1, 2, 3, 4]]), feed([[1000, 0, 0, 0]]), {})
        ]
        assert statuses == [200, 200, 500, 400]
        connection.close()
        while (stats := worker.expect(Stats)).rejected == 0:
            pass
        assert (stats.inferences, stats.errors, stats.rejected) == (2, 1, 1)
        assert stats.rss_bytes > 0


def test_hanging_model_shows_in_stats_while_the_api_stays_alive(tmp_path: Path) -> None:
    digest = unpack(slow_bundle(delay_s=4.0), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        hanging, other = tcp_connection(listeners.port), tcp_connection(listeners.port)
        hanging.request("POST", INFER, msgspec.json.encode(feed([[1, 2, 3, 4]])))
        first = second = None
        while second is None or first is None or second < first:
            first, second = second, worker.expect(Stats).busy_since_s
        assert second > first
        assert ask(other, "GET", "/v2/health/live") == (200, {"live": True})
        hanging.close()
        other.close()


def test_dead_daemon_lets_the_worker_finish_and_follow(tmp_path: Path) -> None:
    digest = unpack(slow_bundle(delay_s=3.0), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        connection = tcp_connection(listeners.port)
        connection.request("POST", INFER, msgspec.json.encode(feed([[1, 2, 3, 4]])))
        while worker.expect(Stats).busy_since_s is None:
            pass
        worker.die_as_daemon()
        assert connection.getresponse().status == 200
        assert worker.exit_code() == 0
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_stop_drains_the_worker(tmp_path: Path, number: signal.Signals) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.serve()
        connection = tcp_connection(listeners.port)
        assert ask(connection, "GET", "/v2/health/live")[0] == 200
        connection.close()
        worker.process.send_signal(number)
        worker.expect(Drained)
        assert worker.exit_code() == 0


def test_drain_before_serve_ends_at_once(tmp_path: Path) -> None:
    digest = unpack(null_bundle(), tmp_path / "slot")
    with listening(tmp_path) as listeners, working(tmp_path / "slot", digest, listeners) as worker:
        worker.expect(Ready)
        worker.channel.send(Drain())
        worker.expect(Drained)
        assert worker.exit_code() == 0
