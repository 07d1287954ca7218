"""Truths: what the given model gives for a series of samples, which all variants are held against.

Invariant: of each sample a digest is kept, so that another pass is known to be of the same ones; of
the outputs no more than `_KEPT_BYTES`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

from edgekit.build.metrics import Outputs
from edgekit.build.model_file import ModelFile
from edgekit.build.samples import FEEDS_DIGEST, DataChanged, Sample
from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_runtime.session import Session, SessionOptions

__all__ = ["Truths", "cores"]

_KEPT_BYTES: Final = 64 * limits.MIB


class Truths:
    """The baseline's outputs for a series of samples, kept as far as `_KEPT_BYTES` go."""

    def __init__(self, baseline: ModelFile) -> None:
        self._baseline = baseline
        self._kept: list[Outputs] = []
        self._kept_bytes = 0
        self._digests: list[bytes] = []

    @property
    def seen(self) -> frozenset[bytes]:
        """What tells the feeds of each sample from others, see `Sample.digest`."""
        return frozenset(digest[:FEEDS_DIGEST] for digest in self._digests)

    def is_of(self, model: ModelFile) -> bool:
        return model == self._baseline

    def along(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Outputs]]:
        """Each sample with the baseline's outputs; the samples are the same ones each time.

        The baseline runs on half the cores: variants run beside it.

        Errors: `Refused` naming the sample on which the baseline fails, `DataChanged`.
        """
        session: Session | None = None
        for index, sample in enumerate(samples):
            digest = sample.digest()
            if index == len(self._digests):
                self._digests.append(digest)
            elif self._digests[index] != digest:
                raise DataChanged
            if index < len(self._kept):
                yield sample, self._kept[index]
                continue
            session = session or self._baseline.open(SessionOptions(threads=max(1, cores() // 2)))
            outputs = _run(session, sample)
            self._kept_bytes += sum(array.nbytes for array in outputs.values())
            if index == len(self._kept) and self._kept_bytes <= _KEPT_BYTES:
                self._kept.append(outputs)
            yield sample, outputs
        if session is not None:
            session.close()


def _run(session: Session, sample: Sample) -> Outputs:
    try:
        return session.run(sample.feeds)
    except Refused as error:
        raise Refused(
            f"the model itself fails on sample {sample.number} of the data "
            f"({str(error).rstrip('.')}): check that sample."
        ) from error


def cores() -> int:
    """Of this machine, as many as this process may use."""
    return len(os.sched_getaffinity(0))
