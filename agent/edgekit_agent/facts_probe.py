"""Asks a child what the device is: `edgekit_agent.facts` imports what the daemon may not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import IO

from edgekit_agent.loop import Loop
from edgekit_contract.errors import MessageRejected, Refused
from edgekit_contract.messages import DeviceFacts, decode

__all__ = ["FactsProbe"]


class FactsProbe:
    """Calls `on_facts` once, in the loop."""

    def __init__(self, profile: str, loop: Loop, on_facts: Callable[[DeviceFacts], None]) -> None:
        self._profile, self._loop, self._on_facts = profile, loop, on_facts
        self._child: subprocess.Popen[bytes] | None = None
        self._text = bytearray()

    def start(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "edgekit_agent.facts", "--profile", self._profile],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        self._child, stdout = child, child.stdout
        self._loop.watch(stdout, lambda: self._read(stdout))

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.stdout is not None:
            self._loop.forget(child.stdout)
            child.stdout.close()
            child.kill()
            child.wait()

    def _read(self, stdout: IO[bytes]) -> None:
        if part := os.read(stdout.fileno(), 1 << 16):
            self._text += part
            return
        self.stop()
        try:
            facts = decode(bytes(self._text), DeviceFacts)
        except MessageRejected as error:
            raise Refused(
                f"the device's facts cannot be found out ({error}): run "
                f"`python -m edgekit_agent.facts --profile {self._profile}` to see why."
            ) from error
        self._on_facts(facts)
