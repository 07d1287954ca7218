"""`run/control.sock`: whoever connects is told the device's state as one JSON object."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgekit_agent.endpoints import connect_unix, listen_unix
from edgekit_agent.loop import Loop
from edgekit_contract.errors import Refused

__all__ = ["StatusSocket", "ask"]

_TIMEOUT_S: Final = 5.0


class StatusSocket:
    def __init__(self, path: Path, loop: Loop, describe: Callable[[], bytes]) -> None:
        self._path, self._loop, self._describe = path, loop, describe
        self._listener = listen_unix(path)
        self._listener.setblocking(False)
        loop.watch(self._listener, self._answer)

    def _answer(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked has left
            client, _ = self._listener.accept()
            with client:
                client.settimeout(0.0)  # a few KiB fit the socket's buffer; nobody is waited for
                client.send(self._describe())

    def close(self) -> None:
        self._loop.forget(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)


def ask(directory: Path) -> bytes:
    """The state of the agent in a device directory. Errors: `Refused` where none runs."""
    path = directory / "run" / "control.sock"
    answer = bytearray()
    try:
        with connect_unix(path, timeout_s=_TIMEOUT_S) as sock, contextlib.suppress(socket.timeout):
            while part := sock.recv(1 << 16):
                answer += part
    except OSError as error:
        raise Refused(
            f"no agent runs in {directory}: start it with `edgekit-agent run --dir {directory}`."
        ) from error
    return bytes(answer)
