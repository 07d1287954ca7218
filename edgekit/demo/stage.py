"""The demo's machines, all on this one: a broker, a hub, three agents, live requests.

Invariant: everything lives below one directory, and leaving the `with` ends every process.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from edgekit.demo.broker import BrokerChoice, BrokerKind, choose_broker, start_broker
from edgekit.demo.traffic import Traffic
from edgekit.hub.fleet import Fleet, FleetSettings, init_fleet
from edgekit.hub.orders import invite
from edgekit.hub.store import Store, open_store
from edgekit_contract.errors import Refused
from edgekit_contract.messages import Reported

__all__ = ["MODEL", "Stage", "StageBroken", "open_stage"]

MODEL: Final = "digits"
_KNOBS: Final = """\
health_s = 1.0
probation_s = 4.0
probation_inferences = 20
api_port = 0
"""
_END_S: Final = 10.0


class StageBroken(Refused):
    """A process of the demo did not do its part; the end of its log says why."""

    def __init__(self, title: str, log: Path) -> None:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last = lines[-1] if lines else "it said nothing"
        super().__init__(f"{title} did not start ({last}): see {log}, or run the demo again.")


class Stage:
    """Processes and files of one run."""

    def __init__(self, directory: Path, broker: BrokerKind, profiles: Mapping[str, bytes]) -> None:
        self.directory, self._broker, self._profiles = directory, broker, profiles
        ports = _free_ports(3)
        self.fleet: Fleet = init_fleet(
            directory / "fleet",
            FleetSettings(
                name="demo",
                hosts=("127.0.0.1",),
                mqtt_port=ports[0],
                https_port=ports[1],
                web_port=ports[2],
            ),
            passphrase=lambda: None,
            now=_now(),
        )
        self.store: Store = open_store(self.fleet.database)
        self.traffic: dict[str, Traffic] = {}
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.fleet.settings.web_port}/"

    def start_broker(self) -> BrokerChoice:
        port = self.fleet.settings.mqtt_port
        choice = choose_broker(self.fleet.directory, self._broker, port=port)
        log = self._log("broker")
        self._processes.append((choice.title, start_broker(choice, log)))
        self._await_port(choice.title, port, log)
        return choice

    def start_hub(self) -> None:
        self._start("hub", "edgekit", "hub", "--fleet", self.fleet.directory)
        for port in (self.fleet.settings.https_port, self.fleet.settings.web_port):
            self._await_port("the hub", port, self._log("hub"))

    def start_agents(self) -> None:
        """Invite and enrol the devices, then start their daemons with impatient settings."""
        enrolling = []
        for device, profile in self._profiles.items():
            invited = invite(
                self.fleet,
                self.store,
                device=device,
                profile_toml=profile,
                life=timedelta(hours=1),
                now=_now(),
            )
            home = self.directory / device
            command = ("enroll", invited.token, "--dir", home)
            enrolling.append((device, home, self._spawn(device, "edgekit_agent", *command)))
        for device, home, process in enrolling:
            if process.wait(timeout=60) != 0:
                raise StageBroken(f"enrolment of {device}", self._log(device))
            with (home / "device.toml").open("a") as settings:
                settings.write(_KNOBS)
            self._start(device, "edgekit_agent", "run", "--dir", home)

    def reported(self) -> dict[str, Reported]:
        """What each device last said it has, as the hub stored it."""
        rows = self.store.registry.devices()
        return {row.id: row.reported for row in rows if row.reported is not None}

    def start_traffic(self, samples: Path) -> None:
        """Begin live requests to each device, where they have not begun."""
        for device, reported in self.reported().items():
            model = reported.models.get(MODEL)
            if device in self.traffic or model is None or model.port is None:
                continue
            self.traffic[device] = Traffic(model.port, MODEL, samples)
            self.traffic[device].start()

    def close(self) -> None:
        """Stop live requests, then every process, the newest first."""
        for traffic in self.traffic.values():
            traffic.stop()
        for _, process in reversed(self._processes):
            process.terminate()
        for _, process in reversed(self._processes):
            try:
                process.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.store.close()

    def check(self) -> None:
        """Errors: `StageBroken` where a process has ended by itself."""
        for title, process in self._processes:
            if process.poll() is not None:
                raise StageBroken(title, self._log(title))

    def _log(self, name: str) -> Path:
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        return logs / f"{name}.log"

    def _spawn(self, log: str, module: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        with self._log(log).open("ab") as stream:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)

    def _start(self, title: str, module: str, *arguments: str | Path) -> None:
        self._processes.append((title, self._spawn(title, module, *arguments)))

    def _await_port(self, title: str, port: int, log: Path) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.check()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            time.sleep(0.05)
        raise StageBroken(title, log)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def _now() -> datetime:
    return datetime.now(timezone.utc)


@contextlib.contextmanager
def open_stage(
    directory: Path, broker: BrokerKind, profiles: Mapping[str, bytes]
) -> Iterator[Stage]:
    """A stage for these devices, with the TOML of their profiles."""
    stage = Stage(directory, broker, profiles)
    try:
        yield stage
    finally:
        stage.close()
