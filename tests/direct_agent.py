"""A daemon to be killed: the real one in a process of its own, its hub in the same process.

`python tests/direct_agent.py DEVICE FLEET VERSION [--die-at PHASE] [--before] [--kill-worker]`
wants VERSION of `tiny` and kills itself with SIGKILL once the journal says PHASE (or, with
--before, when it is about to say so). --kill-worker kills the worker that comes on probation.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
from pathlib import Path
from typing import Any

from agents import DirectLink

from edgekit.hub.depot import Depot
from edgekit_agent import config
from edgekit_agent import journal as journals
from edgekit_agent.clock import SystemClock
from edgekit_agent.daemon import Daemon
from edgekit_agent.journal import Journal
from edgekit_contract.messages import Phase


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", type=Path)
    parser.add_argument("fleet", type=Path)
    parser.add_argument("version")
    parser.add_argument("--die-at", type=Phase)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--kill-worker", action="store_true")
    options = parser.parse_args()

    device, trimmed = config.load(options.device)
    link = DirectLink(Depot(options.fleet))
    link.want(2, tiny=options.version)
    daemon = Daemon(
        options.device,
        device,
        trimmed,
        link=lambda will: link,
        clock=SystemClock(),
        randomness=random.Random(1),
    )
    real: Any = journals.save

    def save(root: Path, journal: Journal) -> None:
        fatal = journal.phase is options.die_at
        if fatal and options.before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(root, journal)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if journal.phase is Phase.PROBATION and options.kill_worker:
            worker = daemon._machines["tiny"].workers.current
            assert worker is not None
            os.kill(worker.pid, signal.SIGKILL)

    journals.save = save
    signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
    daemon.run()


if __name__ == "__main__":
    main()
