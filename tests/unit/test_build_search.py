"""The search: what is tried, in which order, and what gets as far as full figures.

The kitchen and the screen are stood in for by a table of figures, so that a search's decisions are
seen by themselves; tests/e2e has them with real models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from edgekit.build.accuracy import Accuracy
from edgekit.build.choice import Bounds
from edgekit.build.kitchen import Kitchen, Variant
from edgekit.build.pantry import Base
from edgekit.build.progress import Silent
from edgekit.build.ranking import Ranking
from edgekit.build.report import Latency, Score
from edgekit.build.request import Objective
from edgekit.build.screen import Screen, Trial
from edgekit.build.search import Search
from edgekit.build.timetable import Deadlines
from edgekit.build.trials import Trials
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.quantization.sensitivity import NodeNoise
from edgekit_converters.recipes import find_recipe
from edgekit_converters.recipes.recipe import Needs, Recipe
from edgekit_converters.recipes.tuning import UNTUNED, Knob, Tuning

Figures = tuple[float, int, float]
"""Ratio to float32, bytes, closeness in dB."""


def recipe(
    name: str,
    *,
    knobs: frozenset[Knob] = frozenset(),
    varies: str | None = None,
    bits: float = 32.0,
) -> Recipe:
    return Recipe(
        id=name,
        title=name,
        needs=Needs(),
        make=lambda ingredients: None,
        output_step=1 / 255,
        knobs=knobs,
        varies=varies,
        bits=bits,
    )


class Table:
    """Figures by title; what is not in it fails."""

    def __init__(self, figures: Mapping[str, Figures]) -> None:
        self.figures = {"float32": (1.0, 1000, 200.0), **figures}
        self.scores: dict[str, float] = {}
        self.tried: list[str] = []
        self.normalized = Path("unused.onnx")
        self.nodes: tuple[str, ...] = ()
        """The noisiest first."""
        self.rounds_s = self.calibrates_s = 0.0
        self.low: float | None = None
        """Of each score's interval."""
        self.doubt = 0.0
        """To either side of a ratio."""
        self.pantry = self

    def make(self, recipe: Recipe, tuning: Tuning = UNTUNED) -> Variant:
        return Variant(
            recipe=recipe, kind=recipe.needs.runtime, tuning=tuning, path=Path("unused.onnx")
        )

    def base(self, base: Base) -> Path:
        return self.normalized

    def rounding_s(self, base: Base) -> float:
        return self.rounds_s

    def calibrating_s(self, base: Base) -> float:
        return self.calibrates_s

    def noise(self, kind: RuntimeKind) -> tuple[NodeNoise, ...]:
        return tuple(
            NodeNoise(node=name, operator="Conv", noise_db=-20.0 - i, parameters=1)
            for i, name in enumerate(self.nodes)
        )

    def layers(self, kind: RuntimeKind) -> tuple[str, ...]:
        """Without a model there are no ends to spare."""
        return ()

    def make_all(self, recipes: Iterable[Recipe]) -> None:
        pass

    def trial(self, variant: Variant, *, like: Trial | None = None) -> Trial:
        if variant.title not in self.tried:
            self.tried.append(variant.title)
        found = self.figures.get(variant.title)
        if found is None:
            return Trial(variant=variant, accuracy=Accuracy(failure="no figures"))
        ratio, size, closeness = found
        return Trial(
            variant=variant,
            accuracy=Accuracy(
                closeness_db=closeness,
                score=Score(value=self.scores.get(variant.title, 1.0), rows=100, low=self.low),
            ),
            latency=Latency(
                median_ms=ratio,
                ratio=ratio,
                low=ratio - self.doubt,
                high=ratio + self.doubt,
                rounds=15,
            ),
            size_bytes=size,
        )


def search(
    table: Table,
    *recipes: Recipe,
    objective: Objective = Objective.LATENCY,
    clock: Callable[[], float] = lambda: 0.0,
    **changes: Any,
) -> Search:
    deadlines = Deadlines(explore_s=1.0, refine_s=1.0, relieve_s=1.0, rank_s=1.0)
    asked: dict[str, Any] = {"bounds": Bounds(max_drop=0.01), "on_target": True, "forecast": None}
    asked = {name: changes.pop(name, value) for name, value in asked.items()}
    trials = Trials(
        (recipe("float32"), *recipes),
        cast(Kitchen, table),
        cast(Screen, table),
        ranking=Ranking(objective=objective, **asked),
        deadlines=changes.pop("deadlines", deadlines),
        clock=clock,
    )
    return Search(trials, progress=Silent(), **({"is_asked": False} | changes))


def titles(trials: tuple[Trial, ...]) -> list[str]:
    return [trial.title for trial in trials]


def test_variations_are_tried_only_of_the_two_that_gain_most() -> None:
    table = Table({"a": (0.5, 300, 20.0), "b": (0.6, 300, 20.0), "c": (0.7, 300, 20.0)})
    parents = [recipe(name) for name in "abc"]
    children = [recipe(f"{name}/2", varies=name) for name in "abc"]
    found = search(table, *parents, *children)
    found.explore()
    assert table.tried == ["float32", "a", "b", "c", "a/2", "b/2"]
    assert found.untried() == {"c/2": "c gained too little for variations of it to be tried"}


def test_recipes_that_were_asked_for_are_tried_though_the_time_is_over() -> None:
    table = Table({"a": (0.5, 300, 20.0), "a/2": (0.4, 300, 20.0)})
    found = search(table, recipe("a"), recipe("a/2", varies="a"), is_asked=True, clock=lambda: 2.0)
    assert titles(found.explore()) == ["a/2"]


def test_nothing_but_the_baseline_is_tried_when_the_time_is_over() -> None:
    found = search(table := Table({"a": (0.5, 300, 20.0)}), recipe("a"), clock=lambda: 2.0)
    assert found.explore() == ()
    assert table.tried == ["float32"]
    assert found.untried() == {"a": "the search time was over"}


def test_of_ranges_the_most_promising_are_tried_first() -> None:
    family = "int8-static/per-channel/u8s8"
    table = Table({f"{family}/minmax": (0.5, 300, 20.0)})
    search(table, *(find_recipe(f"{family}/{each.value}") for each in Estimator)).explore()
    # the knobs of the simplest, then others; those of ranges fail here, so that none is turned
    tried = [title.removeprefix(f"{family}/") for title in table.tried]
    others = [each for each in tried if each in {e.value for e in Estimator} - {"minmax"}]
    assert others == ["mse", "percentile", "measured", "moving-average", "entropy"]


def test_knob_is_kept_where_it_gains_and_dropped_where_it_does_not() -> None:
    table = Table(
        {
            "a": (0.5, 300, 20.0),
            "a (corrected)": (0.5, 300, 24.0),
            "a (corrected, reconstructed)": (0.5, 300, 24.05),
            "a (wide, corrected)": (0.45, 300, 23.9),
        }
    )
    knobs = frozenset({Knob.CORRECTED, Knob.RECONSTRUCTED, Knob.WIDE})
    found = search(table, recipe("a", knobs=knobs))
    assert titles(found.explore())[0] == "a (wide, corrected)"
    assert "a (wide, corrected, reconstructed)" not in table.tried


def test_finalists_are_those_that_no_other_beats_in_time_size_and_noise() -> None:
    table = Table(
        {
            "fast": (0.3, 300, 10.0),
            "exact": (0.5, 300, 40.0),
            "small": (0.6, 100, 20.0),
            "beaten": (0.55, 310, 30.0),
            "pointless": (1.2, 1100, 90.0),
            "noise": (0.2, 200, -5.0),
        }
    )
    found = search(table, *(recipe(name) for name in table.figures if name != "float32"))
    assert titles(found.explore()) == ["fast", "exact", "small"]
    assert titles(found.trials)[0] == "float32"


def test_by_size_the_smallest_comes_first() -> None:
    table = Table({"fast": (0.3, 300, 30.0), "small": (0.6, 100, 20.0)})
    found = search(table, recipe("fast"), recipe("small"), objective=Objective.SIZE)
    assert titles(found.explore()) == ["small", "fast"]


def test_by_size_families_of_the_fewest_bits_are_tuned_before_others_are_tried() -> None:
    figures: dict[str, Figures] = {
        "dynamic": (0.5, 300, 30.0),
        "dynamic/4": (0.5, 160, 30.0),
        "static": (0.4, 310, 30.0),
    }
    knobs = frozenset({Knob.WIDE})
    recipes = (
        recipe("static", knobs=knobs | {Knob.LEVELLED}, bits=8.0),
        recipe("dynamic", knobs=knobs, bits=8.0),
        recipe("dynamic/4", varies="dynamic", bits=4.0),
    )
    search(table := Table(figures), *recipes, objective=Objective.SIZE).explore()
    assert table.tried.index("dynamic/4") < table.tried.index("static")
    search(table := Table(figures), *recipes).explore()
    assert table.tried[1] == "static"


def test_time_that_reliefs_may_need_is_used_while_the_best_surely_keeps_the_accuracy() -> None:
    def tried(low: float | None) -> list[str]:
        table = Table({"a": (0.5, 300, 20.0), "a/2": (0.4, 300, 20.0)})
        table.low = low
        late = Deadlines(explore_s=1.0, refine_s=5.0, relieve_s=9.0, rank_s=9.0)
        recipes = recipe("a"), recipe("a/2", varies="a")
        found = search(table, *recipes, clock=lambda: 2.0 * ("a" in table.tried), deadlines=late)
        found.explore()
        return table.tried

    assert tried(0.995) == ["float32", "a", "a/2"]
    assert tried(0.98) == ["float32", "a"]
    assert tried(None) == ["float32", "a"]


def spared_title(count: int) -> str:
    return Tuning(spared=tuple(f"n{i + 1}" for i in range(count))).title_of("a")


def test_variants_that_spare_as_many_other_nodes_have_other_titles() -> None:
    titles = {Tuning(spared=names).title_of("a") for names in (("x",), ("y",), ("x", "y"))}
    assert len(titles) == 3


def relieved(found: Search, trial: Trial, *, part: float) -> tuple[str, ...] | None:
    made = found.relieve(trial, part=part)
    return None if made is None else made.variant.tuning.spared


def test_relief_spares_as_many_of_the_noisiest_as_leave_a_part_of_the_noise() -> None:
    """Six nodes, one dB apart: of all the noise the first makes 27%, the first three 66%."""
    table = Table({"a": (0.5, 300, 20.0)})
    found = search(table, recipe("a", knobs=frozenset({Knob.SPARED})))
    table.nodes = ("n1", "n2", "n3", "n4", "n5", "n6")
    trial = found.explore()[0]
    assert relieved(found, trial, part=0.9) == relieved(found, trial, part=0.75) == ("n1",)
    assert relieved(found, trial, part=0.5) == relieved(found, trial, part=0.34) == table.nodes[:3]
    assert relieved(found, trial, part=0.33) == table.nodes[:4]
    assert relieved(found, trial, part=0.0) == table.nodes[:3]


def test_relief_goes_on_from_what_is_spared_until_one_node_is_left() -> None:
    table = Table({"a": (0.5, 300, 20.0), spared_title(2): (0.5, 300, 20.0)})
    found = search(table, recipe("a", knobs=frozenset({Knob.SPARED})))
    table.nodes = ("n1", "n2", "n3", "n4", "n5")
    first = found.relieve(found.explore()[0], part=0.6)
    assert first is not None and first.variant.tuning.spared == table.nodes[:2]
    assert relieved(found, first, part=0.7) == table.nodes[:3]
    table.nodes = table.nodes[:3]
    assert found.relieve(first, part=0.5) is None


def test_nothing_is_relieved_that_cannot_spare() -> None:
    table = Table({"a": (0.5, 300, 20.0)})
    found = search(table, recipe("a"))
    table.nodes = ("n1", "n2", "n3")
    assert found.relieve(found.explore()[0], part=0.5) is None


def test_what_loses_ten_times_the_allowed_accuracy_is_tried_last() -> None:
    table = Table({"fast": (0.3, 300, 8.0), "right": (0.5, 300, 30.0), "mended": (0.35, 300, 20.0)})
    table.scores = {"fast": 0.85, "mended": 0.985}
    found = search(table, *(recipe(name) for name in ("fast", "right", "mended")))
    assert titles(found.explore()) == ["mended", "right", "fast"]


def test_what_is_over_a_bound_comes_last_and_is_no_reason_to_stop() -> None:
    table = Table({"fast": (0.3, 900, 30.0), "small": (0.6, 100, 20.0)})
    found = search(
        table, recipe("fast"), recipe("small"), bounds=Bounds(max_drop=0.01, max_mb=0.0005)
    )
    assert titles(found.explore()) == ["small", "fast"]
    assert [found.ranking.is_within(trial) for trial in found.trials] == [False, False, True]


def test_family_whose_variations_keep_a_bound_of_size_is_tuned_though_its_first_does_not() -> None:
    figures = {"fast": (0.4, 600, 30.0), "fast/4": (0.41, 300, 25.0), "small": (0.9, 100, 20.0)}
    knobs = frozenset({Knob.RECONSTRUCTED})
    found = search(
        Table(figures),
        replace(recipe("fast", knobs=knobs), bits=8),
        replace(recipe("small", knobs=knobs), bits=4),
        replace(recipe("fast/4", knobs=knobs, varies="fast"), bits=4),
        bounds=Bounds(max_drop=0.01, max_mb=0.0005),
    )
    assert titles(found.explore())[0] == "fast/4"


def test_variation_is_named_only_after_the_knobs_that_it_heeds() -> None:
    knobs = frozenset({Knob.RECONSTRUCTED, Knob.SMOOTHED})
    table = Table(
        {
            "a": (0.5, 300, 20.0),
            "a (smoothed)": (0.5, 300, 25.0),
            "a (smoothed, reconstructed)": (0.5, 300, 30.0),
            "b (smoothed)": (0.4, 300, 40.0),
        }
    )
    found = search(table, recipe("a", knobs=knobs), recipe("b", varies="a"))
    assert titles(found.explore())[0] == "b (smoothed)"
    assert "b (smoothed, reconstructed)" not in table.tried


KNOBS = frozenset({Knob.RECONSTRUCTED})


def narrower(table: Table, *, objective: Objective = Objective.LATENCY) -> Search:
    """A recipe with variations of fewer and fewer bits, and one that is no smaller."""
    children = [
        recipe(f"a/{bits}", varies="a", knobs=KNOBS, bits=float(bits)) for bits in (8, 6, 5, 4)
    ]
    found = search(table, recipe("a", knobs=KNOBS, bits=8.0), *children, objective=objective)
    found.explore()
    return found


def rounded(table: Table, *, objective: Objective = Objective.LATENCY) -> list[str]:
    narrower(table, objective=objective)
    return [title for title in table.tried if "reconstructed" in title]


def narrow_table() -> Table:
    figures: dict[str, Figures] = {
        "a": (0.5, 250, 30.0),
        "a/6": (0.51, 200, 25.0),
        "a/5": (0.51, 160, 20.0),
        "a/4": (0.51, 120, 15.0),
    }
    figures |= {
        f"{title} (reconstructed)": (ratio, size, closeness + 2)
        for title, (ratio, size, closeness) in figures.items()
    }
    table = Table(figures)
    table.scores = {
        "a/6": 0.991,
        "a/5": 0.985,
        "a/4": 0.97,
        "a/6 (reconstructed)": 0.998,
        "a/5 (reconstructed)": 0.996,
    }
    return table


def test_smallest_variation_that_rounding_may_mend_is_rounded() -> None:
    for objective in (Objective.LATENCY, Objective.SIZE):
        assert rounded(narrow_table(), objective=objective) == ["a/5 (reconstructed)"]


def test_where_rounding_did_not_mend_one_the_next_larger_is_rounded() -> None:
    table = narrow_table()
    table.scores["a/5 (reconstructed)"] = 0.988
    assert rounded(table) == ["a/5 (reconstructed)", "a/6 (reconstructed)"]


def test_smaller_one_is_rounded_that_a_brief_timing_does_not_tell_from_the_best() -> None:
    table = narrow_table()
    table.figures["a/5"] = (0.6, *table.figures["a/5"][1:])
    table.doubt = 0.1
    assert rounded(table) == ["a/5 (reconstructed)"]


def test_slower_or_smaller_does_not_matter_where_accuracy_does() -> None:
    table = narrow_table()
    table.figures["a/5"] = (0.6, *table.figures["a/5"][1:])
    assert rounded(table) == ["a/6 (reconstructed)"]
    assert rounded(narrow_table(), objective=Objective.ACCURACY) == ["a (reconstructed)"]


def test_fewer_bits_are_not_tried_where_more_lose_too_much() -> None:
    table = narrow_table()
    table.scores["a/6"] = 0.97
    # two are made at a time
    assert narrower(table).untried() == {
        "a/5": "a/6 loses too much with more bits",
        "a/4": "a/6 loses too much with more bits",
    }
    assert "a/8" in table.tried


def test_fewer_bits_are_tried_where_what_loses_too_much_is_too_large_or_has_as_many() -> None:
    table = narrow_table()
    table.scores["a/8"] = 0.9
    assert not narrower(table).untried()
    table.scores["a/6"] = 0.97
    knobs = frozenset({Knob.RECONSTRUCTED})
    children = [
        recipe(f"a/{bits}", varies="a", knobs=knobs, bits=float(bits)) for bits in (6, 5, 4)
    ]
    bounds = Bounds(max_drop=0.01, max_mb=180e-6)
    found = search(table, recipe("a", knobs=knobs, bits=8.0), *children, bounds=bounds)
    found.explore()
    assert not found.untried()


def test_for_size_what_is_no_smaller_than_what_keeps_the_accuracy_is_not_tried() -> None:
    found = narrower(narrow_table(), objective=Objective.SIZE)
    assert found.untried() == {"a/8": "it is no smaller than a"}


def test_nothing_is_rounded_where_there_is_no_time_to_observe_what_layers_read() -> None:
    table = narrow_table()
    table.rounds_s = 1.0
    assert rounded(table) == []


def test_no_other_model_is_started_from_where_there_is_no_time_to_calibrate_it() -> None:
    def tried(calibrates_s: float, *, estimator: Estimator | None) -> list[str]:
        table = Table({"a": (0.5, 300, 20.0), "a (levelled)": (0.5, 300, 30.0)})
        table.calibrates_s = calibrates_s
        needs = replace(Needs(), estimator=estimator)
        search(table, replace(recipe("a", knobs=frozenset({Knob.LEVELLED})), needs=needs)).explore()
        return table.tried

    assert tried(0.5, estimator=Estimator.MINMAX) == ["float32", "a", "a (levelled)"]
    assert tried(1.0, estimator=Estimator.MINMAX) == ["float32", "a"]
    assert tried(1.0, estimator=None) == ["float32", "a", "a (levelled)"]


def test_variations_that_time_was_too_short_for_are_not_said_to_gain_too_little() -> None:
    figures: dict[str, Figures] = {"a": (0.5, 300, 20.0), "b": (1.1, 1000, 20.0)}
    recipes = (
        recipe("a", knobs=frozenset({Knob.WIDE})),
        recipe("b", knobs=frozenset({Knob.WIDE})),
        recipe("a2", varies="a"),
        recipe("b2", varies="b"),
    )
    table = Table(figures)
    short = search(table, *recipes, clock=lambda: float(len(table.tried) >= 3))
    short.explore()
    assert short.untried() == {
        "a2": "the search time was over",
        "b2": "b gained too little for variations of it to be tried",
    }


def test_what_was_made_is_looked_at_though_the_time_ended_meanwhile() -> None:
    table = Table(
        {
            "a": (0.5, 300, 20.0),
            "a (corrected)": (0.5, 300, 22.0),
            "a (corrected, reconstructed)": (0.5, 300, 24.0),
        }
    )
    knobs = frozenset({Knob.CORRECTED, Knob.RECONSTRUCTED})
    spent = [0.0]

    class Slow(Table):
        def make_all(self, recipes: Iterable[Recipe]) -> None:
            spent[0] += len(list(recipes)) > 1

    slow = Slow(table.figures)
    found = search(slow, recipe("a", knobs=knobs), clock=lambda: spent[0])
    assert titles(found.explore())[0] == "a (corrected, reconstructed)"


def test_little_that_costs_nothing_on_the_device_is_kept() -> None:
    figures: dict[str, Figures] = {"a": (0.5, 300, 20.0), "a (levelled)": (0.5, 300, 20.15)}
    found = search(Table(figures), recipe("a", knobs=frozenset({Knob.LEVELLED})))
    assert titles(found.explore())[0] == "a (levelled)"


def test_estimators_are_tried_by_what_they_promise() -> None:
    table = Table({f"x/{e.value}": (0.5, 300, 20.0) for e in Estimator})
    recipes = [
        replace(
            recipe(f"x/{e.value}", varies=None if e is Estimator.MINMAX else "x/minmax"),
            needs=Needs(estimator=e),
        )
        for e in Estimator
    ]
    search(table, *recipes).explore()
    assert table.tried[:4] == ["float32", "x/minmax", "x/mse", "x/percentile"]
    assert table.tried[-1] == "x/entropy"
