"""Reported state and health, kept within the size of a control message. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from edgekit_contract.errors import MessageRejected
from edgekit_contract.messages import Health, Reported, ReportedModel, encode

__all__ = ["fitting_health", "fitting_report"]

_SHORT_CHARS: Final = 48
_DIGEST_CHARS: Final = 12
"""As many as people are shown."""


def _shorter_reason(model: ReportedModel) -> ReportedModel:
    if model.last is None or len(model.last.reason) <= _SHORT_CHARS:
        return model
    reason = model.last.reason[: _SHORT_CHARS - 1] + "…"
    return replace(model, last=replace(model.last, reason=reason))


def _no_good_execution(model: ReportedModel) -> ReportedModel:
    """All is as it was asked for: that is what silence means, too."""
    execution = model.execution
    return model if execution is None or execution.missed else replace(model, execution=None)


def _shorter_fallback(model: ReportedModel) -> ReportedModel:
    execution = model.execution
    if execution is None or len(execution.reason) <= _SHORT_CHARS:
        return model
    reason = execution.reason[: _SHORT_CHARS - 1] + "…"
    return replace(model, execution=replace(execution, reason=reason))


def _no_digest_of_last(model: ReportedModel) -> ReportedModel:
    return model if model.last is None else replace(model, last=replace(model.last, digest=""))


def _short_digest(model: ReportedModel) -> ReportedModel:
    if model.active is None:
        return model
    return replace(model, active=replace(model.active, digest=model.active.digest[:_DIGEST_CHARS]))


def _each(economy: Callable[[ReportedModel], ReportedModel]) -> Callable[[Reported], Reported]:
    def apply(reported: Reported) -> Reported:
        models = {name: economy(model) for name, model in reported.models.items()}
        return replace(reported, models=models)

    return apply


def _no_features(reported: Reported) -> Reported:
    return replace(reported, device=replace(reported.device, features=()))


def _bare_facts(reported: Reported) -> Reported:
    facts = replace(reported.device, core="", board="", os="", python="", agent="", runtimes={})
    return replace(reported, device=facts)


_ECONOMIES: Final[tuple[Callable[[Reported], Reported], ...]] = (
    _each(_no_good_execution),
    _each(_shorter_reason),
    _each(_shorter_fallback),
    _each(_no_digest_of_last),
    _each(lambda model: replace(model, last=None)),
    _no_features,
    _each(lambda model: replace(model, progress=None)),
    _each(lambda model: replace(model, port=None)),
    _each(_short_digest),
    _each(lambda model: replace(model, execution=None)),
    _bare_facts,
    _each(lambda model: replace(model, target=None)),
)
"""What is given up first, when a device with many models has too much to say: with all of it given
up, `limits.MAX_DESIRED_MODELS` of them fit."""


def fitting_report(reported: Reported) -> bytes:
    """`reported` on the wire, with as much as fits; of more models than a hub may want, the last
    are left out."""
    for economy in _ECONOMIES:
        try:
            return encode(reported)
        except MessageRejected:
            reported = economy(reported)
    while True:
        try:
            return encode(reported)
        except MessageRejected:
            if not reported.models:
                raise
            models = dict(list(reported.models.items())[:-1])
            reported = replace(reported, models=models)


def fitting_health(health: Health) -> Health:
    """`health` without latencies, then without models, where it does not fit otherwise."""
    try:
        encode(health)
    except MessageRejected:
        pass
    else:
        return health
    models = {
        name: replace(model, p50_ms=None, p99_ms=None, worker=None)
        for name, model in health.models.items()
    }
    slim = replace(health, models=models)
    try:
        encode(slim)
    except MessageRejected:
        return replace(health, models={})
    return slim
