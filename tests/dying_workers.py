"""What a worker of the farm runs in tests of workers that die; importable in a spawned process."""

from __future__ import annotations

import os
import signal

from edgekit.build.farm import Answer, Order, work

__all__ = ["kills_itself"]


def kills_itself(order: Order) -> Answer:
    """As `work`, but for the model that is called killer."""
    if order.request.name == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return work(order)
