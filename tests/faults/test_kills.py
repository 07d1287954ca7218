"""Kill the updater or the daemon in each phase, with SIGKILL: the next start ends as it should."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from agents import (
    PATIENCE_S,
    Agent,
    DirectLink,
    Shop,
    make_device,
    running,
    variant,
)

from edgekit_agent import journal as journals
from edgekit_agent.slots import Slots
from edgekit_agent.supervisor import Supervisor
from edgekit_contract.messages import EventKind, OutcomeKind, Phase

UPDATERS = [
    Phase.CHECK,
    Phase.PREFLIGHT,
    Phase.FETCH,
    Phase.VERIFY,
    Phase.STAGE,
    Phase.WARMUP,
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("fleet") / "fleet")
    shop.release(variant("1.0"))
    shop.release(variant("1.1", ballast_bytes=200_000))
    return shop


@pytest.fixture(scope="module")
def installed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device that serves 1.0."""
    device = make_device(tmp_path_factory.mktemp("device") / "device", shop)
    link = DirectLink(shop.depot)
    link.want(1, tiny="1.0")
    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
    return device


@pytest.fixture
def device(installed: Path, quick_path: Path) -> Path:
    return Path(shutil.copytree(installed, quick_path / "device"))


def run_until_it_dies(device: Path, shop: Shop, *options: str) -> None:
    script = Path(__file__).parents[1] / "direct_agent.py"
    command = [sys.executable, str(script), str(device), str(shop.directory), "1.1", *options]
    with (device.parent / "stderr").open("wb") as stderr:
        code = subprocess.run(command, stderr=stderr, timeout=PATIENCE_S, check=False).returncode
    assert code == -signal.SIGKILL, (device.parent / "stderr").read_text()


def leave_no_orphans(device: Path) -> None:
    """Workers of a daemon that was killed end by themselves."""
    deadline = time.monotonic() + PATIENCE_S
    while orphans := [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(device) in part for part in process.info["cmdline"] or ())
    ]:
        assert time.monotonic() < deadline, f"left running: {orphans}"
        time.sleep(0.05)


def worker_ids(device: Path) -> list[int]:
    """Processes of this device's workers."""
    return [
        process.pid
        for process in psutil.Process().children()
        if (command := process.cmdline())
        and any(str(device) in part for part in command)
        and "edgekit_agent.worker" in command
    ]


def workers(device: Path) -> int:
    """How many run for this device."""
    return len(worker_ids(device))


def is_whole(agent: Agent, version: str) -> bool:
    journal = journals.load(agent.directory / "models/tiny")
    active = Slots(agent.directory / "models/tiny").active()
    return (
        journal.phase is Phase.IDLE
        and active is not None
        and active.version == version
        and agent.serves(version)
    )


@pytest.mark.parametrize("phase", UPDATERS, ids=lambda phase: phase.value)
def test_a_killed_updater_is_begun_again_while_the_old_release_serves(
    device: Path, shop: Shop, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = DirectLink(shop.depot)
    killed: list[int] = []
    real = journals.save

    def kill() -> None:
        updater = agent.daemon._machines["tiny"].updater
        assert updater is not None
        killed.append(updater.pid)
        os.kill(updater.pid, signal.SIGKILL)

    def save(root: Path, journal: journals.Journal) -> None:
        real(root, journal)
        if journal.phase is phase and not killed:
            agent.daemon._loop.post(kill)

    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        monkeypatch.setattr(journals, "save", save)
        link.want(2, tiny="1.1")
        agent.wait(lambda: is_whole(agent, "1.1"), "1.1")
        assert len(killed) == 1
        assert "SIGKILL" in link.texts(EventKind.RETRY)[0]
        assert link.outcomes()[-1] == ("committed", "1.1")


def test_an_incoming_worker_that_is_killed_in_switch_is_given_up_while_the_old_one_serves(
    device: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = DirectLink(shop.depot)
    killed: list[int] = []
    tick = Supervisor.tick

    def tick_and_kill(supervisor: Supervisor) -> None:
        tick(supervisor)
        if supervisor.incoming is not None and not killed:
            killed.append(supervisor.incoming.pid)
            os.kill(supervisor.incoming.pid, signal.SIGKILL)

    with running(device, link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        (serving,) = worker_ids(device)
        monkeypatch.setattr(Supervisor, "tick", tick_and_kill)
        link.want(2, tiny="1.1")
        agent.wait(lambda: (last := agent.last()) and last.version == "1.1", "the rollback")
        assert len(killed) == 1
        last = agent.last()
        assert last is not None
        assert last.kind is OutcomeKind.ROLLED_BACK
        assert (last.phase, "SIGKILL" in last.reason) == (Phase.SWITCH, True)
        agent.wait(lambda: is_whole(agent, "1.0"), "1.0")
        assert worker_ids(device) == [serving]


@pytest.mark.parametrize(
    ("phase", "point"),
    [
        *[(phase, "after") for phase in UPDATERS],
        (Phase.SWITCH, "before"),
        (Phase.SWITCH, "after"),
        (Phase.PROBATION, "before"),
        (Phase.PROBATION, "after"),
        (Phase.COMMIT, "before"),
        (Phase.COMMIT, "after"),
    ],
)
def test_a_killed_daemon_finishes_the_update_after_its_next_start(
    device: Path, shop: Shop, phase: Phase, point: str
) -> None:
    run_until_it_dies(
        device, shop, "--die-at", phase.value, *(["--before"] if point == "before" else [])
    )
    link = DirectLink(shop.depot)
    link.want(2, tiny="1.1")
    with running(device, link) as agent:
        agent.wait(lambda: is_whole(agent, "1.1"), "1.1")
        last = agent.last()
        assert last is not None
        assert (last.kind.value, last.version) == ("committed", "1.1")
        agent.wait(lambda: workers(device) == 1, "one worker")
    leave_no_orphans(device)


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_daemon_killed_in_rollback_goes_back_after_its_next_start(
    device: Path, shop: Shop, point: str
) -> None:
    options = ["--die-at", "rollback", "--kill-worker"]
    run_until_it_dies(device, shop, *options, *(["--before"] if point == "before" else []))
    active = Slots(device / "models/tiny").active()
    assert active is not None and active.version == "1.1"
    link = DirectLink(shop.depot)
    with running(device, link) as agent:
        if point == "before":
            # the journal still says PROBATION and the worker is healthy now: it may commit
            agent.wait(lambda: is_whole(agent, "1.1"), "1.1")
        else:
            agent.wait(lambda: is_whole(agent, "1.0"), "1.0")
            assert link.outcomes()[-1] == ("rolled-back", "1.1")
    leave_no_orphans(device)


def test_a_release_that_takes_the_daemon_down_again_and_again_is_rolled_back(
    device: Path, shop: Shop
) -> None:
    run_until_it_dies(device, shop, "--die-at", "probation")
    for _ in range(3):
        # as if the power was cut in each probation: the start counts, whatever follows
        journal = journals.load(device / "models/tiny")
        journals.save(
            device / "models/tiny", msgspec.structs.replace(journal, starts=journal.starts + 1)
        )
    link = DirectLink(shop.depot)
    link.want(2, tiny="1.1")
    with running(device, link) as agent:
        agent.wait(lambda: is_whole(agent, "1.0"), "1.0")
        last = agent.last()
        assert last is not None
        assert last.kind.value == "rolled-back"
        assert "died 4 times" in last.reason
