"""The finals of a contest: what gets full accuracy, in which order, and what is relieved.

Search and bench are stood in for by tables, so that the order is seen by itself; tests/e2e has them
with real models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from edgekit.build.accuracy import Accuracy
from edgekit.build.bench import Bench
from edgekit.build.choice import Bounds
from edgekit.build.finals import Finals
from edgekit.build.kitchen import Variant
from edgekit.build.ranking import Ranking
from edgekit.build.report import Latency, Score
from edgekit.build.request import Objective
from edgekit.build.screen import Trial
from edgekit.build.search import Search
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.recipes.recipe import Needs, Recipe

ROWS = 10_000


def trial(name: str, ratio: float, *, size: int = 250, spread: float = 0.0) -> Trial:
    recipe = Recipe(
        id=name, title=name, needs=Needs(), make=lambda ingredients: None, output_step=1 / 255
    )
    return Trial(
        variant=Variant(recipe=recipe, kind=RuntimeKind.ONNXRUNTIME, path=Path(f"{name}.onnx")),
        accuracy=Accuracy(score=Score(value=1.0, rows=ROWS), closeness_db=30.0),
        latency=Latency(
            median_ms=ratio, ratio=ratio, low=ratio - spread, high=ratio + spread, rounds=15
        ),
        size_bytes=size,
    )


class Tables:
    """Full scores by title, and what relief makes of a trial."""

    def __init__(self, *pending: Trial, **scores: float) -> None:
        self.pending = list(pending)
        self.scores = {"float32": 1.0, **scores}
        self.reliefs: dict[str, Trial] = {}
        self.over = False
        self.left_s = self.selection_s = self.closer_s = 10.0
        self.ranking = Ranking(
            objective=Objective.LATENCY, bounds=Bounds(max_drop=0.01), on_target=True
        )
        self.ranking.baseline = trial("float32", 1.0, size=1000)
        self.trials = (self.ranking.baseline,)
        self.passes: list[list[str]] = []
        self.asked: list[str] = []
        self.parts: list[float] = []
        self.closer = 0
        self._known: set[str] = set()

    def accuracies(self, variants: Sequence[Variant]) -> dict[str, Accuracy]:
        new = [v.title for v in variants if v.title not in self._known]
        if new:
            self.passes.append(new)
            self._known.update(new)
        return {
            v.title: Accuracy(score=Score(value=self.scores[v.title], rows=ROWS)) for v in variants
        }

    def look_closer(self) -> None:
        self.closer += 1
        self._known.clear()

    def is_over(self, takes_s: float = 0.0) -> bool:
        return self.over or takes_s > self.left_s

    def relieve(self, tried: Trial, *, part: float) -> Trial | None:
        self.asked.append(tried.title)
        self.parts.append(round(part, 4))
        return self.reliefs.get(tried.title)

    def finals(self) -> list[str]:
        finals = Finals(cast(Search, self), cast(Bench, self), Bounds(max_drop=0.01))
        return [one.title for one in finals.hold(self.pending)]


def test_what_cannot_win_against_the_best_is_not_run_beside_it() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9, size=100), a=1.0, b=1.0)
    assert tables.finals() == ["a"]
    assert tables.passes == [["float32", "a"]]


def test_what_may_be_as_fast_is_run_beside_the_best() -> None:
    near = trial("b", 0.41, size=100)
    tables = Tables(trial("a", 0.4), near, trial("c", 0.6, size=50), a=1.0, b=1.0, c=1.0)
    assert tables.finals() == ["a", "b"]
    assert tables.passes == [["float32", "a", "b"]]


def test_what_a_brief_timing_does_not_tell_from_the_best_is_run_beside_it() -> None:
    doubtful = trial("b", 0.43, spread=0.03)
    assert Tables(trial("a", 0.4), doubtful, a=1.0, b=1.0).finals() == ["a", "b"]
    sure = trial("b", 0.43, spread=0.001)
    assert Tables(trial("a", 0.4), sure, a=1.0, b=1.0).finals() == ["a"]


def test_smaller_one_is_run_that_another_timing_may_find_as_fast() -> None:
    smaller = trial("b", 0.43, size=230)
    assert Tables(trial("a", 0.4), smaller, a=1.0, b=1.0).finals() == ["a", "b"]
    hardly = trial("b", 0.43, size=240)
    assert Tables(trial("a", 0.4), hardly, a=1.0, b=1.0).finals() == ["a"]
    slow = trial("b", 0.45, size=230)
    assert Tables(trial("a", 0.4), slow, a=1.0, b=1.0).finals() == ["a"]
    nearly = replace(smaller, accuracy=Accuracy(score=Score(value=0.9905, rows=ROWS)))
    assert Tables(trial("a", 0.4), nearly, a=1.0, b=1.0).finals() == ["a"]


def test_next_is_run_before_more_samples_are_where_the_best_loses_too_much() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9), a=0.985, b=1.0)
    assert tables.finals() == ["a", "b"]
    assert tables.closer == 0 and tables.passes == [["float32", "a"], ["b"]]


def test_more_samples_are_looked_at_once_where_neither_holds_and_one_nearly_does() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9), trial("c", 0.95), a=0.985, b=0.95, c=0.985)
    assert tables.finals() == ["a", "b", "c"]
    assert tables.closer == 1


def test_slower_one_is_not_relieved_beside_a_faster_one_that_was() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9), a=0.9, b=0.9, mended=1.0)
    tables.reliefs = {"a": trial("mended", 0.42), "b": trial("never", 0.95)}
    assert tables.finals() == ["a", "b", "mended"]
    assert tables.asked == ["a"]
    assert tables.parts == [
        0.07
    ]  # a tenth is lost, a hundredth is allowed, of which 0.7 are aimed at


def test_nothing_is_relieved_beside_one_that_holds_while_others_may_hold_without() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.405), trial("c", 0.41), a=1.0, b=0.9, c=1.0)
    tables.reliefs = {"b": trial("never", 0.41)}
    assert tables.finals() == ["a", "b", "c"] and tables.asked == []
    tables = Tables(trial("a", 0.4), trial("b", 0.405), trial("c", 0.9), a=1.0, b=0.9, c=1.0)
    assert tables.finals() == ["a", "b"] and tables.asked == []
    tables = Tables(trial("a", 0.4), trial("b", 0.5), trial("c", 0.9), a=0.9, b=1.0, mended=1.0)
    tables.reliefs = {"a": trial("mended", 0.45)}
    assert tables.finals() == ["a", "b", "mended"] and tables.asked == ["a"]


def test_none_is_relieved_before_others_were_run_that_are_as_fast() -> None:
    pending = [trial(name, 0.4 + place / 1000) for place, name in enumerate("abcd")]
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=1.0)
    tables.reliefs = {"a": trial("never", 0.42)}
    assert tables.finals() == ["a", "b", "c", "d"] and tables.asked == []
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=0.9, mended=1.0)
    tables.reliefs = {"a": trial("mended", 0.42)}
    assert tables.finals() == ["a", "b", "c", "d", "mended"]
    assert tables.asked == ["a", "b", "c", "d"]  # of the others nothing was made
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=1.0)
    tables.selection_s = 20.0
    tables.finals()
    assert tables.asked == ["a", "b"]  # after another pass it would be too late


def test_what_was_postponed_is_relieved_where_only_a_slower_one_holds() -> None:
    pending = [trial("a", 0.4), trial("b", 0.404), trial("c", 0.408), trial("d", 0.7)]
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=1.0, mended=1.0)
    tables.reliefs = {"a": trial("mended", 0.42)}
    assert tables.finals() == ["a", "b", "c", "d", "mended"]
    assert tables.asked[0] == "a"


def test_of_what_is_as_fast_two_are_relieved_at_a_time() -> None:
    pending = [trial(name, 0.4 + place / 1000) for place, name in enumerate("abcd")]
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=0.9, **dict.fromkeys("efgh", 1.0))
    tables.reliefs = {lost: trial(made, 0.45) for lost, made in zip("abcd", "efgh", strict=True)}
    assert tables.finals() == [*"abcd", "e", "f"]
    assert tables.asked == ["a", "b"]


def test_slower_one_is_relieved_where_the_faster_cannot_be() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9), a=0.9, b=0.9, mended=1.0)
    tables.reliefs = {"b": trial("mended", 0.95)}
    assert tables.finals() == ["a", "b", "mended"]
    assert tables.asked == ["a", "b"]


def test_what_holds_on_the_screen_goes_first_where_there_is_no_time_for_relief() -> None:
    poor = replace(trial("a", 0.4), accuracy=Accuracy(score=Score(value=0.9, rows=ROWS)))
    tables = Tables(poor, trial("b", 0.6), trial("c", 0.7), a=0.9, b=1.0, c=1.0)
    tables.left_s = 1.0
    assert tables.finals() == ["b"]
    tables = Tables(poor, trial("b", 0.6), trial("c", 0.7), a=0.9, b=1.0, c=1.0)
    assert tables.finals() == ["a", "b"]


def test_when_time_is_over_two_are_run_at_a_time_until_one_holds() -> None:
    pending = [trial(name, place / 10) for place, name in enumerate("abcdef", 1)]
    tables = Tables(*pending, a=0.9, b=0.9, c=0.9, d=1.0, e=1.0, f=1.0)
    tables.over = True
    assert tables.finals() == ["a", "b", "c", "d"]
    assert tables.passes == [["float32", "a", "b"], ["c", "d"]]


def test_when_time_is_over_the_smallest_that_is_hardly_slower_is_run_beside_the_best() -> None:
    pending = [trial("b", 0.94), trial("c", 0.95, size=120), trial("d", 0.98, size=60)]
    tables = Tables(trial("a", 0.4), *pending, a=0.9, b=1.0, c=1.0, d=1.0)
    tables.over = True
    assert tables.finals() == ["a", "c"]
    assert tables.passes == [["float32", "a", "c"]]


def test_best_is_relieved_where_there_is_no_time_to_look_closer() -> None:
    tables = Tables(trial("a", 0.4), trial("b", 0.9), a=0.985, b=0.95, mended=1.0)
    tables.reliefs = {"a": trial("mended", 0.42)}
    tables.closer_s = 30.0
    assert tables.finals() == ["a", "b", "mended"]
    assert tables.closer == 0 and tables.asked == ["a"]
