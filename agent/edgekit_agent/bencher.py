"""The bencher: an updater's run that times a bundle and leaves nothing of it.

Invariants: what it runs is signed by the fleet's targets key, under a name that no desired state
can have; it never touches a slot. Its one directory, `bench/`, is gone when it ends, and removed by
the next where it was killed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from edgekit_agent import storage
from edgekit_agent.clock import Clock
from edgekit_agent.control import (
    BENCH_DIRECTORY,
    BenchAssignment,
    Channel,
    Measured,
    ToUpdater,
    read_report,
)
from edgekit_agent.download import Hub, HubSilent, NotFound
from edgekit_agent.tuf_client import HubStale, TrustMetadata
from edgekit_agent.window import closed_s
from edgekit_contract import compatibility
from edgekit_contract.envelope import ENVELOPE_PATH, Envelope, decode
from edgekit_contract.errors import Incompatible, Refused
from edgekit_contract.messages import cut
from edgekit_contract.profile import parse_profile

__all__ = ["Bencher"]

_DISK_RESERVE_BYTES: Final = 16 << 20


class Bencher:
    """One run, for one assignment."""

    def __init__(
        self, channel: Channel[ToUpdater], assignment: BenchAssignment, clock: Clock
    ) -> None:
        self._assignment = assignment
        self._hub = Hub(
            channel,
            clock,
            request_timeout_s=assignment.request_timeout_s,
            stall_timeout_s=assignment.stall_timeout_s,
        )
        self._root = Path(assignment.directory)
        self._scratch = self._root / BENCH_DIRECTORY

    def run(self) -> Measured:
        """Fetch, verify, time. Errors: `PeerGone`."""
        wanted, versions = self._assignment, None
        try:
            storage.remove(self._scratch)
            trust = TrustMetadata(
                self._root / "tuf", self._hub, now=wanted.now, clock_behind=wanted.clock_behind
            )
            versions = trust.refresh(wanted.versions)
            target = trust.find_bench(wanted.digest, wanted.facts.profile)
            envelope = decode(trust.envelope(target))
            self._demand(envelope)
            self._fetch(envelope)
            found = self._time(envelope)
        except (Refused, HubSilent, HubStale) as error:
            found = Measured(reason=cut(str(error)))
        except NotFound:
            found = Measured(reason="the hub lacks a file it should have")
        except OSError as error:
            found = Measured(reason=cut(f"{error.strerror or error}"))
        finally:
            with contextlib.suppress(OSError):  # the next measurement clears it
                storage.remove(self._scratch)
        return Measured(
            figures=found.figures,
            rss_bytes=found.rss_bytes,
            runtime=found.runtime,
            reason=found.reason,
            versions=versions,
        )

    def _demand(self, envelope: Envelope) -> None:
        """That it fits this device, its budget and its knobs. Errors: `Refused`."""
        wanted, manifest = self._assignment, envelope.manifest
        if unmet := compatibility.unmet(manifest, wanted.facts):
            raise Incompatible(manifest.title, unmet)
        path = self._root / "profile.toml"
        profile = parse_profile(path.read_bytes(), source=str(path))
        if excess := compatibility.over_budget(manifest, profile.budget):
            raise Incompatible(manifest.title, excess)
        size_bytes = sum(entry.size for entry in manifest.files)
        if wanted.max_fetch_bytes is not None and size_bytes > wanted.max_fetch_bytes:
            raise Incompatible(
                manifest.title,
                [
                    f"it has {-(-size_bytes >> 20)} MiB to fetch, "
                    f"max_fetch_mib is {wanted.max_fetch_bytes >> 20}"
                ],
            )
        if not wanted.clock_behind and closed_s(wanted.window, wanted.now):
            raise Refused(f"the update window is closed, it is {wanted.window} UTC.")
        if storage.free_bytes(self._root) < size_bytes + _DISK_RESERVE_BYTES:
            raise Refused(f"the disk has no room for {manifest.title}.")

    def _fetch(self, envelope: Envelope) -> None:
        for entry in envelope.manifest.files:
            path = self._scratch / entry.path
            storage.create_directory(path.parent)
            self._hub.download(entry, path, lambda count: None)
        storage.write(self._scratch / ENVELOPE_PATH, envelope.raw)

    def _time(self, envelope: Envelope) -> Measured:
        wanted, kind = self._assignment, envelope.manifest.runtime.value
        command = [sys.executable, "-m", "edgekit_agent.warmup"]
        command += ["--bundle", str(self._scratch), "--digest", wanted.digest]
        command += ["--bench-s", str(wanted.budget_s)]
        if wanted.max_rss_bytes is not None:
            command += ["--max-rss-bytes", str(wanted.max_rss_bytes)]
        timeout_s = wanted.warmup_timeout_s + wanted.budget_s
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"it took more than {timeout_s:.0f} s.") from None
        report = read_report(run.stdout)
        if report is None or (report.passed and report.figures is None):
            raise Refused(f"the measurement ended with code {run.returncode} and no report.")
        return Measured(
            figures=report.figures,
            rss_bytes=report.rss_bytes,
            runtime=f"{kind} {wanted.facts.runtimes.get(kind, '')}".strip(),
            reason=report.reason,
        )
