"""The local API: which request gets which answer. docs/local-api.md is its user's page.

Invariant: each request is answered exactly once, with JSON, whatever the model does; an error is
`{"error": one sentence}`. Source: Open Inference Protocol v2, REST specification.
"""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from collections.abc import Callable
from typing import Final

import msgspec

from edgekit_agent import oip
from edgekit_agent.connection import HttpRequest, HttpResponse
from edgekit_agent.inference import Runner
from edgekit_agent.stats import Counters
from edgekit_contract.errors import EdgekitError
from edgekit_runtime.session import InferenceFailed, InputRejected, Session

__all__ = ["Api"]

Reply = Callable[[HttpResponse], None]
Handler = Callable[[HttpRequest, Reply], None]

JSON_BYTES_HEADER: Final = "inference-header-content-length"

_STATUSES: Final[dict[type[Exception], int]] = {
    oip.RequestRejected: 400,
    InputRejected: 400,
    oip.RequestTooLarge: 413,
    InferenceFailed: 500,
    oip.Unsendable: 500,
}
"""What an error that inferring may raise is answered with."""


class Api:
    """Answers for one model. Its methods belong to the server's thread."""

    def __init__(
        self,
        *,
        model: oip.ServedModel,
        session: Session,
        runner: Runner[HttpResponse],
        counters: Counters,
        now_s: Callable[[], float],
    ) -> None:
        """`now_s` is the clock of `HttpRequest.received_s`."""
        self._model, self._session, self._runner = model, session, runner
        self._counters, self._now_s = counters, now_s
        self._routes = self._make_routes()

    def _make_routes(self) -> dict[str, tuple[str, Handler]]:
        """Path to its method and handler."""
        name, version = self._model.name, self._model.version
        server = msgspec.json.encode(
            {
                "name": "edgekit-agent",
                "version": importlib.metadata.version("edgekit"),
                "extensions": ["binary_tensor_data", "classification"],
            }
        )
        routes: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", _always(server)),
            "/v2/health/live": ("GET", _always(b'{"live":true}')),
            "/v2/health/ready": ("GET", self._ready({})),
        }
        for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
            routes[path] = ("GET", _always(oip.model_metadata(self._model)))
            routes[f"{path}/ready"] = ("GET", self._ready({"name": name}))
            routes[f"{path}/infer"] = ("POST", self._infer)
        return routes

    def handle(self, request: HttpRequest, reply: Reply) -> None:
        """Answer a request, now or later. Errors: none."""
        path = request.path.rstrip("/")
        if path not in self._routes:
            return reply(
                _failure(
                    404,
                    f"there is nothing at {request.path[:200]}: this is "
                    f"/v2/models/{self._model.name}, version {self._model.version}.",
                )
            )
        method, handler = self._routes[path]
        if ("GET" if request.method == "HEAD" else request.method) != method:
            return reply(_failure(405, f"use {method} for {path}.", ("allow", method)))
        return handler(request, reply)

    def refuse(self, status: int, sentence: str) -> HttpResponse:
        """The answer to what never became a request."""
        self._counters.rejected()
        return _failure(status, sentence)

    def _ready(self, fields: dict[str, str]) -> Handler:
        def ready(request: HttpRequest, reply: Reply) -> None:
            is_ready = not self._runner.full
            body = msgspec.json.encode(fields | {"ready": is_ready})
            reply(HttpResponse(status=200 if is_ready else 503, body=(body,)))

        return ready

    def _infer(self, request: HttpRequest, reply: Reply) -> None:
        def done(response: HttpResponse) -> None:
            reply(response)
            self._count(response.status, self._now_s() - request.received_s)

        if not self._runner.submit(lambda: self._answer(request), done):
            self._counters.rejected()
            reply(_failure(503, "too many requests wait: try again.", ("retry-after", "1")))

    def _count(self, status: int, latency_s: float) -> None:
        if status == 200:
            self._counters.inferred(latency_s)
        elif status < 500:
            self._counters.rejected()
        else:
            self._counters.failed()

    def _answer(self, request: HttpRequest) -> HttpResponse:
        """The whole of an inference. Runs wherever the runner has it."""
        try:
            inference = oip.parse_request(request.body, _json_bytes(request), self._model)
            tensors = self._session.run(inference.feeds)
            answer = oip.encode_answer(inference, tensors, self._model)
        except EdgekitError as error:
            return _failure(_STATUSES.get(type(error), 500), str(error))
        except Exception as error:
            # Ours, or a runtime's that its module did not foresee: one request fails, no more.
            traceback.print_exc(file=sys.stderr)
            return _failure(500, f"the worker failed: {type(error).__name__}: {error}.")
        if answer.json_bytes is None:
            return HttpResponse(status=200, body=answer.body)
        return HttpResponse(
            status=200,
            body=answer.body,
            headers=(
                ("content-type", "application/octet-stream"),
                (JSON_BYTES_HEADER, str(answer.json_bytes)),
            ),
        )


def _json_bytes(request: HttpRequest) -> int | None:
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise oip.RequestRejected(f"the body is {encoding[:40]}: send it uncompressed.")
    text = request.headers.get(JSON_BYTES_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise oip.RequestRejected("Inference-Header-Content-Length is not a number of bytes.")
    return int(text)


def _always(body: bytes) -> Handler:
    response = HttpResponse(status=200, body=(body,))
    return lambda request, reply: reply(response)


def _failure(status: int, sentence: str, *headers: tuple[str, str]) -> HttpResponse:
    body = msgspec.json.encode({"error": sentence})
    return HttpResponse(
        status=status, body=(body,), headers=(("content-type", "application/json"), *headers)
    )
