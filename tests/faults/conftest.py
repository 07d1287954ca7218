"""Where the medium is simulated, or killed processes leave their traces, a fast one will do; and a
warm-up that passes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgekit_agent.control import WarmupReport
from edgekit_contract.trust import verify_directory


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of fsyncs cost minutes on a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


@pytest.fixture
def passing_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up is another process, tested elsewhere; here it passes, if the slot is whole."""

    def run(command: list[str], **rest: object) -> subprocess.CompletedProcess[bytes]:
        slot = Path(command[command.index("--bundle") + 1])
        verify_directory(slot, envelope_sha256=command[command.index("--digest") + 1])
        report = msgspec.json.encode(WarmupReport(passed=True))
        return subprocess.CompletedProcess(command, 0, stdout=report)

    monkeypatch.setattr("edgekit_agent.updater.subprocess.run", run)
