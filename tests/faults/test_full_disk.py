"""Storage that fails for a while, at every single write: nothing crashes, nothing is half-done."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agents import DirectLink, Shop, make_device, running, variant
from rigs import NEW, OLD, Rig, installed

from edgekit_agent import daemon, storage
from edgekit_agent.link import TakenOver
from edgekit_agent.outbox import Outbox
from edgekit_agent.slots import Slots
from edgekit_contract.messages import EventKind, Phase


@pytest.mark.parametrize("sick", [None, "1.1"])
@pytest.mark.parametrize("failures", [1, 5])
def test_a_disk_that_is_full_for_a_while_delays_an_update_and_no_more(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, sick: str | None, failures: int
) -> None:
    real = storage.write
    first = writes = 0

    def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        nonlocal writes
        writes += 1
        if first <= writes < first + failures:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data, mode=mode)

    while writes >= first:
        first += 1
        root = quick_path / f"{first}"
        root.mkdir()
        installed(root)
        with monkeypatch.context() as patch:
            writes = 0
            patch.setattr(storage, "write", write)
            rig = Rig(root, sick=sick)
            for _ in range(4):
                rig.run("1.1")
        active = Slots(root / "models" / "m").active()
        assert rig.machine.phase is Phase.IDLE
        if sick is None:
            assert active is not None and active.digest == NEW.digest
            assert rig.record.value.counters == {"m": 1}
        else:
            assert active == OLD
        told = [kind for kind, _ in rig.events]
        assert EventKind.RETRY in told or writes < first, f"failed write {first} was not reported"
    assert first > 10


def test_a_medium_that_is_read_only_still_serves(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(quick_path)

    def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(storage, "write", write)
    rig = Rig(quick_path, sick=None)
    rig.run("1.1")
    assert rig.machine.workers.current is not None
    assert rig.machine.workers.current.launch.version == "1.0"
    assert rig.machine.phase is Phase.IDLE


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "fleet")
    shop.release(variant("1.0"))
    shop.release(variant("1.1"))
    return shop


@pytest.mark.parametrize("child", ["edgekit_agent.updater", "edgekit_agent.worker"])
def test_a_device_without_room_for_another_process_serves_on_and_updates_later(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    link = DirectLink(shop.depot)
    link.want(1, tiny="1.0")
    real = subprocess.Popen
    refused: list[list[str]] = []

    def start(command: list[str], **options: Any) -> Any:
        if child in command and not refused:
            refused.append(command)
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(command, **options)

    with running(make_device(tmp_path / "device", shop), link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        monkeypatch.setattr(subprocess, "Popen", start)
        link.want(2, tiny="1.1")
        agent.wait(lambda: agent.serves("1.1"), "1.1")
        assert refused
        assert "temporarily unavailable" in link.texts(EventKind.RETRY)[0]


def test_a_wish_that_a_full_disk_does_not_take_is_obeyed_later(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = DirectLink(shop.depot)
    real = storage.create_directory
    refused: list[Path] = []

    def create(path: Path) -> None:
        if path.name == "tiny" and not refused:
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(storage, "create_directory", create)
    monkeypatch.setattr(daemon, "_OBEY_AGAIN_S", 0.5)
    link.want(1, tiny="1.0")
    with running(make_device(tmp_path / "device", shop), link) as agent:
        agent.wait(lambda: agent.serves("1.0"), "1.0")
        assert refused


def test_a_takeover_is_told_though_the_disk_is_full(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = DirectLink(shop.depot)

    def renew(outbox: Outbox) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with running(make_device(tmp_path / "device", shop), link) as agent:
        agent.wait(lambda: link.reported, "a report")
        monkeypatch.setattr(Outbox, "renew_stream", renew)
        link._give(TakenOver("another client", 0.0))
        link.connect()
        agent.wait(lambda: link.texts(EventKind.TAKEOVER), "the takeover")
