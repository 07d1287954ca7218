"""The updater: a short-lived child that takes one model from CHECK through WARMUP.

Invariants: it has no key, no network and no say: it talks to the daemon alone, asks before it
enters a phase, and writes only to `downloads/`, `tuf/` and the inactive slot. It may be killed at
any instant; the next one finds what is on the disk and goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgekit_agent import storage
from edgekit_agent.bencher import Bencher
from edgekit_agent.clock import Clock, SystemClock
from edgekit_agent.control import (
    Assignment,
    BenchAssignment,
    Channel,
    Entering,
    Finished,
    MetadataVersions,
    PeerGone,
    Proceed,
    Progress,
    Release,
    ToUpdater,
    Verdict,
    read_report,
)
from edgekit_agent.download import Hub, HubSilent, NotFound
from edgekit_agent.staging import Staging
from edgekit_agent.tuf_client import HubStale, SignedTarget, TrustMetadata, UntrustedMetadata
from edgekit_agent.window import closed_s
from edgekit_contract import compatibility, names
from edgekit_contract.envelope import Envelope, decode
from edgekit_contract.errors import BundleRejected, Incompatible, Reason, Refused
from edgekit_contract.manifest import FileEntry, Manifest
from edgekit_contract.messages import Phase, cut
from edgekit_contract.profile import parse_profile

__all__ = ["Updater", "main"]

_DISK_RESERVE_BYTES: Final = 16 << 20
"""Left free for the journal, the outbox and the rest of the device."""
_PROGRESS_EVERY_S: Final = 0.25
_NICENESS: Final = 10


class _NotNow(Exception):
    """A reason that may pass."""


class _Done(Exception):
    """What is wanted is active already."""


class Updater:
    """One run, for one assignment."""

    def __init__(self, channel: Channel[ToUpdater], assignment: Assignment, clock: Clock) -> None:
        self._channel, self._assignment, self._clock = channel, assignment, clock
        self._hub = Hub(
            channel,
            clock,
            request_timeout_s=assignment.request_timeout_s,
            stall_timeout_s=assignment.stall_timeout_s,
        )
        root = Path(assignment.directory)
        models = root / "models" / names.model_name(assignment.model)
        self._profile_path = root / "profile.toml"
        self._tuf = root / "tuf"
        self._downloads = root / "downloads"
        self._slot = models / assignment.slot
        self._staging = Staging(
            downloads=self._downloads,
            slot=self._slot,
            active=models / assignment.active_slot if assignment.active_slot else None,
        )
        self._versions: MetadataVersions | None = None
        self._release: Release | None = None

    def run(self) -> Finished:
        """Work through the phases; how it ended. Errors: `PeerGone`."""
        try:
            target, trust = self._check()
            envelope = self._preflight(target, trust)
            self._fetch(envelope.manifest)
            self._verify(envelope.manifest)
            self._enter(Phase.STAGE)
            self._staging.stage(envelope.manifest, envelope.raw)
            self._warm_up(target.release)
        except _Done:
            return self._finished(None)
        except Refused as error:
            return self._finished(Verdict(final=True, reason=cut(str(error))))
        except (_NotNow, HubSilent, HubStale) as error:
            return self._finished(Verdict(final=False, reason=cut(str(error))))
        except NotFound:
            return self._finished(
                Verdict(final=False, reason="the hub lacks a file it should have")
            )
        except OSError as error:
            what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            return self._finished(Verdict(final=False, reason=cut(what)))
        return Finished(release=target.release, versions=self._versions)

    def _finished(self, verdict: Verdict | None) -> Finished:
        release = self._release if verdict is not None else None
        return Finished(release=release, verdict=verdict, versions=self._versions)

    def _enter(self, phase: Phase) -> None:
        """Wait until the daemon has journaled `phase`. Errors: `PeerGone`."""
        if self._release is None or self._versions is None:
            raise RuntimeError(f"{phase} before CHECK has found a release")
        self._channel.send(Entering(phase=phase, release=self._release, versions=self._versions))
        while not isinstance(answer := self._channel.receive(), Proceed):
            pass  # a chunk that came late
        if answer.phase is not phase:
            raise RuntimeError(f"asked for {phase}, got {answer.phase}")

    def _check(self) -> tuple[SignedTarget, TrustMetadata]:
        wanted = self._assignment
        trust = TrustMetadata(
            self._tuf, self._hub, now=wanted.now, clock_behind=wanted.clock_behind
        )
        self._versions = trust.refresh(wanted.versions)
        target = trust.find(wanted.model, wanted.version, wanted.facts.profile)
        self._release = release = target.release
        if release.digest == wanted.active_digest:
            raise _Done
        if release.digest == wanted.barred_digest:
            raise Refused(f"it was tried before: {wanted.barred_reason}")
        if release.counter < wanted.counter_floor:
            raise UntrustedMetadata(
                f"counter {release.counter} is below this device's floor {wanted.counter_floor}: "
                "release it again under a new version."
            )
        return target, trust

    def _preflight(self, target: SignedTarget, trust: TrustMetadata) -> Envelope:
        self._enter(Phase.PREFLIGHT)
        wanted = self._assignment
        envelope = decode(trust.envelope(target))
        manifest = envelope.manifest
        named = (manifest.name, manifest.version, manifest.profile)
        if named != (wanted.model, wanted.version, wanted.facts.profile):
            raise BundleRejected(Reason.BAD_MANIFEST, f"it calls itself {manifest.title}")
        serving = self._staging.served() if wanted.active_digest is not None else None
        beside_bytes = serving.requires.peak_ram_bytes if serving is not None else 0
        if unmet := compatibility.unmet(manifest, wanted.facts, beside_bytes=beside_bytes):
            raise Incompatible(manifest.title, unmet)
        profile = parse_profile(self._profile_path.read_bytes(), source=str(self._profile_path))
        if excess := compatibility.over_budget(manifest, profile.budget):
            raise Incompatible(manifest.title, excess)
        storage.create_directory(self._downloads)
        missing = self._staging.look(manifest)
        self._demand_leave_to_fetch(manifest, missing)
        needed = self._staging.needed_bytes(missing) + _DISK_RESERVE_BYTES
        if storage.free_bytes(self._downloads) < needed:
            self._staging.free_space(manifest)
            lacking = needed - storage.free_bytes(self._downloads)
            if lacking > 0:
                raise _NotNow(f"the disk lacks {-(-lacking >> 20)} MiB for {manifest.title}")
        return envelope

    def _demand_leave_to_fetch(self, manifest: Manifest, missing: list[FileEntry]) -> None:
        """By the knobs of this device, if there is something to fetch."""
        wanted, size_bytes = self._assignment, self._staging.fetched_bytes(missing)
        if wanted.max_fetch_bytes is not None and size_bytes > wanted.max_fetch_bytes:
            raise Incompatible(
                manifest.title,
                [
                    f"it has {-(-size_bytes >> 20)} MiB to fetch, "
                    f"max_fetch_mib is {wanted.max_fetch_bytes >> 20}"
                ],
            )
        if not wanted.clock_behind and closed_s(wanted.window, wanted.now):
            raise _NotNow(f"the update window is closed, it is {wanted.window} UTC")

    def _fetch(self, manifest: Manifest) -> None:
        self._enter(Phase.FETCH)
        missing = self._staging.look(manifest)
        self._staging.claim(missing)
        total = sum(entry.size for entry in missing)
        done, told_at = 0, 0.0

        def on_bytes(count: int) -> None:
            nonlocal done, told_at
            done += count
            now = self._clock.monotonic()
            if now - told_at >= _PROGRESS_EVERY_S:
                told_at = now
                self._channel.send(Progress(done_bytes=done, total_bytes=total))

        for entry in missing:
            self._staging.reuse(entry)
            before = done
            self._hub.download(entry, self._staging.download_path(entry), on_bytes)
            done = before + entry.size
        self._channel.send(Progress(done_bytes=total, total_bytes=total))

    def _verify(self, manifest: Manifest) -> None:
        self._enter(Phase.VERIFY)
        wrong = self._staging.verify(manifest)
        if wrong is not None:
            raise _NotNow(f"{wrong.path} changed on this device's disk")

    def _warm_up(self, release: Release) -> None:
        self._enter(Phase.WARMUP)
        wanted = self._assignment
        command = [sys.executable, "-m", "edgekit_agent.warmup"]
        command += ["--bundle", str(self._slot), "--digest", release.digest]
        if wanted.max_rss_bytes is not None:
            command += ["--max-rss-bytes", str(wanted.max_rss_bytes)]
        if wanted.max_latency_ms is not None:
            command += ["--max-latency-ms", str(wanted.max_latency_ms)]
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=wanted.warmup_timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"warm-up took more than {wanted.warmup_timeout_s:.0f} s.") from None
        report = read_report(run.stdout)
        if run.returncode < 0:
            raise Refused(f"warm-up was killed by signal {-run.returncode}.")
        if report is None:
            raise Refused(f"warm-up ended with code {run.returncode} and no report.")
        if not report.passed:
            raise Refused(report.reason)


def _stay_in_the_background() -> None:
    """Yield to inference, and be the first that the kernel kills when memory runs out."""
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("900", encoding="ascii")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: `python -m edgekit_agent.updater --control-fd N`."""
    parser = argparse.ArgumentParser(prog="edgekit_agent.updater")
    parser.add_argument("--control-fd", type=int, required=True)
    fd = parser.parse_args(arguments).control_fd
    _stay_in_the_background()
    with socket.socket(fileno=fd) as sock:
        channel: Channel[ToUpdater] = Channel(sock, ToUpdater)
        try:
            assignment = channel.receive()
            if isinstance(assignment, Assignment):
                channel.send(Updater(channel, assignment, SystemClock()).run())
            elif isinstance(assignment, BenchAssignment):
                channel.send(Bencher(channel, assignment, SystemClock()).run())
            else:
                raise RuntimeError("the first packet was not an assignment")
        except PeerGone:
            return 1  # the daemon is gone: its next start begins again
    return 0


if __name__ == "__main__":
    sys.exit(main())
