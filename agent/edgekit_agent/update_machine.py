"""The update machine of one model: the transitions of `transitions`, with their effects.

Invariants: the journal is on the medium before a phase begins; every phase may begin again after a
crash at any instant; `active` changes in SWITCH and ROLLBACK only; floors rise in COMMIT only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from edgekit_agent import journal as journals
from edgekit_agent import storage
from edgekit_agent.attempts import Attempts
from edgekit_agent.control import Entering, Finished, Measured, Progress, Release
from edgekit_agent.probation import Judgement, Probation
from edgekit_agent.record import (
    Barred,
    allowed,
    barred,
    forgotten,
    raised,
    raised_counter,
)
from edgekit_agent.slots import Active, Slots
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.surroundings import Surroundings
from edgekit_agent.transitions import (
    MAX_STARTS,
    TRANSITIONS,
    UPDATING,
    Step,
    recovered,
)
from edgekit_agent.updater_process import UpdaterProcess
from edgekit_agent.worker_process import Launch, WorkerProcess
from edgekit_contract.messages import (
    EventKind,
    Execution,
    Outcome,
    OutcomeKind,
    Phase,
    ReportedModel,
    cut,
)

__all__ = ["UpdateMachine"]

_HOLD_S: Final = 2.0
"""Between attempts to write to a storage that fails, or to start a worker without memory."""


class UpdateMachine:
    def __init__(
        self, model: str, around: Surroundings, supervisor: Callable[..., Supervisor]
    ) -> None:
        self.model = model
        self._around = around
        self._root = around.directory / "models" / model
        storage.create_directory(self._root)
        self._slots = Slots(self._root)
        self._journal = journals.load(self._root)
        self.workers = supervisor(model)
        self.updater: UpdaterProcess | None = None
        self.attempts = Attempts(around.knobs, around.clock, around.randomness)
        self._progress: float | None = None
        self._probation = Probation(around.knobs.probation)
        self._damaged = False
        self._fallback_told: tuple[str, Execution] | None = None
        """Whether a worker found that the active slot does not match its digest."""
        self._hold_until = 0.0

    # --- what the daemon tells it

    def recover(self) -> None:
        """Go on after a start, from whatever the journal says."""
        active = self._slots.active()
        self._keep(recovered(self._journal, active), lenient=True)
        if active is not None and self._journal.phase is not Phase.ROLLBACK:
            self.workers.serve(self._launch(active))
        if self._journal.phase is Phase.SWITCH and active != self._journal.staged:
            self._switch()

    def want(self, version: str, *, anew: bool) -> None:
        """What the hub wants of this model; `anew`: in a desired state not seen before."""
        if not self.attempts.want(version, anew=anew):
            return
        if self._journal.phase in UPDATING and self._journal.version != version:
            self._stop_updater()
            self._step(Step.INTERRUPTED, lenient=True, version=None)
        if self._satisfied(version):
            self.attempts.satisfied()
        else:
            self.attempts.at_once()

    def due(self, now: float) -> bool:
        """Whether it wants an updater now."""
        return self._journal.phase is Phase.IDLE and self.attempts.due(now)

    def begin(self) -> None:
        """IDLE -> CHECK, with an updater."""
        wanted = self.attempts.begin()
        try:
            active, slot = self._slots.active(), self._slots.inactive
            self._step(Step.STARTED, version=wanted, slot=slot, previous=active)
            self.updater = self._around.spawn_updater(
                self._around.assignment(
                    self.model, wanted, slot=slot, active=active, damaged=self._damaged
                ),
                on_progress=self._on_progress,
                on_entering=self._on_entering,
                on_end=self._on_end,
            )
        except OSError as error:
            self._cannot(error)

    def tick(self) -> None:
        """Look at the workers, and at the time."""
        if self._around.clock.monotonic() < self._hold_until:
            return
        try:
            self.workers.tick()
            self._tell_fallback()
            self._advance()
        except OSError as error:
            # the phase stands, and is done again: every phase may be
            self._hold_until = self._around.clock.monotonic() + _HOLD_S
            self._emit(EventKind.RETRY, f"{self._journal.phase.value}: {_why(error)}")

    def _tell_fallback(self) -> None:
        """Once for a bundle and what became of its wishes, not for each start of a worker."""
        for worker in (self.workers.current, self.workers.incoming):
            if worker is None or worker.execution is None or not worker.execution.missed:
                continue
            told = (worker.launch.digest, worker.execution)
            if told != self._fallback_told:
                self._fallback_told = told
                reason = worker.execution.reason
                self._emit(EventKind.FALLBACK, reason, version=worker.launch.version)

    def _advance(self) -> None:
        phase = self._journal.phase
        incoming, current = self.workers.incoming, self.workers.current
        if phase is Phase.COMMIT:
            self._commit()
        elif phase is Phase.ROLLBACK:
            self._roll_back()
        elif phase is Phase.SWITCH and incoming is not None and not incoming.alive:
            self._fail(incoming.lost or "the worker left")
        elif phase is Phase.SWITCH and incoming is not None and incoming.ready:
            self._slots.switch(self._journal.staged)
            self.workers.promote()
            self._around.changed()
        elif phase is Phase.SWITCH and current is not None and self._is_staged(current):
            if not current.alive:
                self._fail(current.lost or "the worker left")
            elif self.workers.serving:
                self._damaged = False
                self._step(Step.PASSED)
        elif current is not None and not current.alive:
            self._on_worker_lost(current)
        elif phase is Phase.PROBATION and self.workers.serving:
            self._judge(None)

    def stop(self, *, graceful: bool) -> None:
        """Stop the children; a graceful stop is not held against the bundle."""
        self._stop_updater()
        if graceful and self._journal.starts:
            self._keep(msgspec.structs.replace(self._journal, starts=0), lenient=True)
        self.workers.stop()

    def remove(self) -> None:
        """The model is not wanted any more: forget all but its floors."""
        self.stop(graceful=False)
        self.workers.close()
        self._keep(journals.Journal(), lenient=True)  # a cut must not leave a phase without slots
        self._slots.switch(None)
        storage.remove(self._root)
        self._around.record.save(forgotten(self._around.record.value, self.model))

    # --- what it tells the daemon

    @property
    def active(self) -> Active | None:
        return self._slots.active()

    @property
    def phase(self) -> Phase:
        return self._journal.phase

    def reported(self) -> ReportedModel:
        active, journal = self._slots.active(), self._journal
        return ReportedModel(
            active=active.ref if active else None,
            phase=journal.phase,
            target=journal.version,
            progress=self._progress if journal.phase is Phase.FETCH else None,
            last=journal.last,
            port=self.workers.port,
            execution=self.workers.execution,
        )

    # --- the updater's phases

    def _on_progress(self, progress: Progress) -> None:
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
        self._progress = round(share, 3)
        self._around.changed()

    def _on_entering(self, entering: Entering) -> None:
        try:
            self._enter(entering)
        except OSError as error:
            self._stop_updater()
            self._cannot(error)

    def _enter(self, entering: Entering) -> None:
        record, release = self._around.record, entering.release
        if TRANSITIONS[self._journal.phase, Step.PASSED] is not entering.phase:
            self._stop_updater()
            self._interrupt(f"the updater wants {entering.phase.value} too early")
            return
        if entering.phase is Phase.PREFLIGHT:
            record.save(raised(record.value, entering.versions))
            record.save(allowed(record.value, self.model, release.digest))
            known = self._journal.release
            same = known is not None and known.digest == release.digest
            starts = self._journal.starts if same else 0
            self._step(Step.PASSED, release=release, starts=starts)
        else:
            self._step(Step.PASSED)
        if entering.phase is Phase.WARMUP and self._journal.starts >= MAX_STARTS:
            self._stop_updater()
            self._refuse(f"the agent died {self._journal.starts} times while it ran", release)
        elif self.updater is not None:
            self.updater.proceed(entering.phase)

    def _on_end(self, end: Finished | Measured | str) -> None:
        self.updater = None
        try:
            if isinstance(end, Finished):
                self._finish(end)
            else:
                self._interrupt(end if isinstance(end, str) else "the updater lost its way")
        except OSError as error:
            self._cannot(error)

    def _finish(self, end: Finished) -> None:
        record = self._around.record
        if end.versions is not None:
            record.save(raised(record.value, end.versions))
        if end.verdict is not None and end.verdict.final:
            self._refuse(end.verdict.reason, end.release)
        elif end.verdict is not None:
            self._interrupt(end.verdict.reason)
        elif end.release is None:
            self._damaged = False
            self._step(Step.UNCHANGED, version=None)
            self.attempts.satisfied()
        elif self._journal.phase is Phase.WARMUP and end.release == self._journal.release:
            self._step(Step.PASSED)
            self._switch()
        else:
            self._interrupt("the updater skipped a phase")

    def _cannot(self, error: OSError) -> None:
        self._interrupt(f"the system refuses: {_why(error)}")

    def _interrupt(self, reason: str) -> None:
        """Stop for now. A journal that cannot be written leads to the same after a restart; from
        SWITCH on there is no stopping, but `tick` does the phase again."""
        phase, delay_s = self._journal.phase, self.attempts.interrupted()
        self._emit(EventKind.RETRY, f"{reason}; trying again in {delay_s:.0f} s", phase=phase)
        if phase in UPDATING:
            self._step(Step.INTERRUPTED, lenient=True, version=None)

    def _refuse(self, reason: str, release: Release | None) -> None:
        """End the attempt for good: this digest is not tried again."""
        phase = self._journal.phase
        bar = self._around.record.value.barred.get(self.model)
        again = bar is not None and release is not None and bar.digest == release.digest
        insisted = self.attempts.insisted
        if release is not None and not again:
            self._bar(release, OutcomeKind.REFUSED, phase, reason)
        self.attempts.satisfied()
        if again and not insisted:
            self._step(Step.REFUSED, version=None, starts=0)
        else:
            self._end(Step.REFUSED, OutcomeKind.REFUSED, phase, reason)

    # --- the daemon's phases

    def _switch(self) -> None:
        self.workers.prepare(self._launch(self._journal.staged))

    def _is_staged(self, worker: WorkerProcess) -> bool:
        return worker.launch == self._launch(self._journal.staged)

    def _judge(self, lost: str | None) -> None:
        current = self.workers.current
        now, stats = self._around.clock.monotonic(), current.stats if current else None
        judgement, reason = self._probation.look(now, stats, lost)
        if judgement is Judgement.HEALTHY:
            self._step(Step.PASSED)
            self._commit()
        elif judgement is Judgement.UNHEALTHY:
            self._fail(reason)

    def _commit(self) -> None:
        record, floor = self._around.record, self._journal.staged.floor
        record.save(forgotten(raised_counter(record.value, self.model, floor), self.model))
        self._end(Step.PASSED, OutcomeKind.COMMITTED, Phase.COMMIT, "")
        self._next_attempt()

    def _fail(self, reason: str) -> None:
        """SWITCH or PROBATION -> ROLLBACK."""
        phase = self._journal.phase
        self._step(Step.UNHEALTHY, reason=cut(reason), failed_in=phase)
        self._roll_back()

    def _roll_back(self) -> None:
        journal = self._journal
        self._slots.switch(journal.previous)
        if journal.previous is not None:
            self.workers.serve(self._launch(journal.previous))
        else:
            self.workers.stop()
        failed_in = journal.failed_in or Phase.PROBATION
        if journal.release is not None:
            self._bar(journal.release, OutcomeKind.ROLLED_BACK, failed_in, journal.reason)
        self._end(Step.PASSED, OutcomeKind.ROLLED_BACK, failed_in, journal.reason)
        self._next_attempt()

    def _next_attempt(self) -> None:
        """After an update: what is wanted may have changed meanwhile."""
        last, wanted = self._journal.last, self.attempts.wanted
        if (last is not None and last.version == wanted) or self._satisfied(wanted):
            self.attempts.satisfied()
        else:
            self.attempts.at_once()

    def _satisfied(self, version: str | None) -> bool:
        active = self._slots.active()
        return active is not None and active.version == version and not self._damaged

    def _on_worker_lost(self, worker: WorkerProcess) -> None:
        reason = worker.lost or "the worker left"
        self._emit(EventKind.WORKER_LOST, reason, version=worker.launch.version)
        if self._journal.phase is Phase.PROBATION:
            self._judge(reason)
            return
        if worker.damaged and not self._damaged:
            self._damaged = True
            self.attempts.at_once()
        self.workers.restart_later()
        self._around.changed()

    def _launch(self, bundle: Active) -> Launch:
        return Launch(
            directory=self._slots.directory(bundle.slot),
            digest=bundle.digest,
            version=bundle.version,
        )

    # --- the journal

    def _step(self, step: Step, *, lenient: bool = False, **changes: Any) -> None:
        phase = TRANSITIONS[self._journal.phase, step]
        if phase is Phase.PROBATION:
            self._probation.begin()
        if phase is not Phase.FETCH:
            self._progress = None
        self._keep(msgspec.structs.replace(self._journal, phase=phase, **changes), lenient=lenient)
        if phase is not Phase.IDLE:
            self._emit(EventKind.PHASE, phase.value, phase=phase)

    def _end(self, step: Step, kind: OutcomeKind, phase: Phase, reason: str) -> None:
        """Tell the outcome, then close the journal: a crash between them tells it twice."""
        journal, now = self._journal, self._around.clock.now()
        version = journal.version or ""
        outcome = Outcome(
            kind=kind,
            version=version,
            digest=journal.release.digest if journal.release else "",
            phase=phase,
            reason=cut(reason),
            at=now,
        )
        self._emit(EventKind.OUTCOME, reason or kind.value, phase=phase, outcome=kind)
        self._step(
            step, last=outcome, version=None, slot=None, previous=None, starts=0, reason="",
            failed_in=None, release=None,
        )  # fmt: skip

    def _keep(self, journal: journals.Journal, *, lenient: bool = False) -> None:
        """Write the journal. `lenient`: to forget an unfinished update, where a restart that finds
        the old journal would do the same. Errors: `OSError`, unless lenient."""
        if journal == self._journal:
            return
        try:
            journals.save(self._root, journal)
        except OSError:
            if not lenient:
                raise
        self._journal = journal
        self._around.changed()

    def _bar(self, release: Release, kind: OutcomeKind, phase: Phase, reason: str) -> None:
        record = self._around.record
        entry = Barred(
            version=release.version, digest=release.digest, kind=kind, phase=phase, reason=reason
        )
        record.save(barred(record.value, self.model, entry))

    def _emit(self, kind: EventKind, text: str, **fields: Any) -> None:
        fields.setdefault("version", self._journal.version)
        self._around.emit(kind, cut(text), model=self.model, **fields)

    def _stop_updater(self) -> None:
        if self.updater is not None:
            self.updater.kill()
            self.updater = None


def _why(error: OSError) -> str:
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
