"""A real mosquitto, run by the configuration that `edgekit fleet init` writes."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from parts import need

from edgekit.hub.fleet import Fleet

START_S = 20.0


class Mosquitto:
    """The broker of a fleet; ended by its process id."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._program = need("mosquitto")
        self._process: subprocess.Popen[bytes] | None = None
        self.log = Path(f"{fleet.directory}-mosquitto.log")

    def start(self) -> None:
        port = self._fleet.settings.mqtt_port
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self._fleet.mosquitto_conf)], stdout=log, stderr=log
            )
        ends_at = time.monotonic() + START_S
        while time.monotonic() < ends_at:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise AssertionError(f"mosquitto does not listen on {port}:\n{self.log.read_text()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
