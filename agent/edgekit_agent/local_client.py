"""A request to a model's local API over its Unix socket: `edgekit-agent infer`."""

from __future__ import annotations

import http.client
import socket
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit_agent.endpoints import connect_unix
from edgekit_contract import limits, names
from edgekit_contract.errors import Misused, Refused

__all__ = ["infer", "shown"]

_TIMEOUT_S: Final = 60.0
_MOST_SHOWN: Final = 16
"""Values of one output on a line for people."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock: socket.socket = connect_unix(self._path, timeout_s=_TIMEOUT_S)


def infer(directory: Path, model: str, source: str) -> str:
    """The response's JSON for the request in `source` (.npz, JSON, or `-` for JSON on stdin).

    Errors: `Misused` for an unreadable source, `Refused` where the model does not answer it.
    """
    body = _request(source)
    path = directory / "run" / f"{names.model_name(model)}.sock"
    connection = _UnixConnection(path)
    try:
        connection.request(
            "POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Refused(
            f"{model} is not served in {directory}: see `edgekit-agent status --dir {directory}`."
        ) from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise Refused(f"{model} answered {response.status}: {_error(answer)}")
    return answer.decode()


def shown(answer: str) -> list[str]:
    """A response for people: a line per output, cut where it is long."""
    lines = []
    for output in msgspec.json.decode(answer, type=dict[str, Any])["outputs"]:
        values = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in output["data"]]
        if len(values) > _MOST_SHOWN:
            values[_MOST_SHOWN:] = [f"... ({len(values)} values)"]
        lines.append(f"{output['name']} {output['datatype']} {output['shape']}: {' '.join(values)}")
    return lines


def _error(answer: bytes) -> str:
    try:
        return str(msgspec.json.decode(answer, type=dict[str, Any]).get("error", ""))
    except msgspec.DecodeError:
        return answer[: limits.MAX_TEXT_CHARS].decode(errors="replace")


def _request(source: str) -> bytes:
    try:
        if source == "-":
            return sys.stdin.buffer.read()
        path = Path(source)
        return _from_npz(path) if path.suffix == ".npz" else path.read_bytes()
    except (OSError, ValueError) as error:
        raise Misused(
            f"cannot read {source}: {error}; give a .npz or a request as JSON."
        ) from error


def _from_npz(path: Path) -> bytes:
    import numpy as np

    from edgekit_agent.oip import DATATYPES

    inputs = []
    with np.load(path, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            if array.dtype.name not in DATATYPES:
                raise ValueError(f"{name} is {array.dtype.name}")
            inputs.append(
                {
                    "name": name,
                    "datatype": DATATYPES[array.dtype.name],
                    "shape": list(array.shape),
                    "data": array.ravel().tolist(),
                }
            )
    return msgspec.json.encode({"inputs": inputs})
