"""`edgekit new`: asks on a terminal, takes options elsewhere, and writes an edgekit.toml."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgekit.cli.output import emit, json_option, remark
from edgekit_contract.errors import Misused, Refused

if TYPE_CHECKING:
    from edgekit.build.project import Project
    from edgekit_contract.manifest import Preprocess
    from edgekit_converters.proof import Signature

__all__ = ["ProjectExists", "new"]

T = TypeVar("T")

_MODELS: Final = (".onnx", ".tflite")


class ProjectExists(Refused):
    """There is a file where the new one would go."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and is not overwritten: edit it, or choose another -o.")
        self.path = path


@click.command()
@click.argument("model", required=False)
@click.option("--profile", "profiles", multiple=True, help="A kind of device; repeat for more.")
@click.option("--calibration", metavar="DATA", help="Samples to estimate int8 ranges from.")
@click.option("--validation", metavar="DATA", help="Samples to compare variants on.")
@click.option("--objective", help="latency (default), size or accuracy.")
@click.option("--max-drop", metavar="SHARE",
              help="Greatest loss of the metric against float32; default: 1%.")  # fmt: skip
@click.option("--labels", metavar="FILE", help="One class name a line; default: labels.txt beside "
              "the model.")  # fmt: skip
@click.option("--name", help="Name of the model; default: that of its file.")
@click.option("--version", default="1.0.0", show_default=True)
@click.option("--key", metavar="FILE", help="Private key that will sign the bundles.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("edgekit.toml"),
              show_default=True, metavar="FILE", help="The file to write.")  # fmt: skip
@json_option
def new(*, output: Path, as_json: bool, **flags: Any) -> None:
    """Describe a build of MODEL in edgekit.toml; `edgekit build` then repeats it.

    What no option says is asked, on a terminal; elsewhere it keeps its default.
    """
    from edgekit.build.proposal import project_text

    if output.exists():  # said before ten questions are answered for nothing
        raise ProjectExists(output)
    project, perhaps = _propose(_Questions(sys.stdin.isatty()), **flags)
    project.request(dry_run=True)  # what a build would refuse is not written
    text = project_text(project, directory=output.parent, perhaps=perhaps)
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise ProjectExists(output) from error
    except OSError as error:
        raise Misused(f"cannot write {output}: {error.strerror}; choose another -o.") from error
    if as_json:
        emit({"path": output, "project": project})
    else:
        named = "" if output == Path("edgekit.toml") else f" {output}"
        click.echo(f"{output} is written: edgekit build{named} --dry-run shows the plan.")


class _Questions:
    """Asks what no option says; a wrong answer is asked again, a wrong option is an error."""

    def __init__(self, can_ask: bool) -> None:
        self.can_ask = can_ask

    def answer(
        self, given: str | None, prompt: str, default: str | None, parse: Callable[[str], T]
    ) -> T:
        if given is None and not self.can_ask:
            if default is None:
                raise Misused(f"nobody can be asked for: {prompt}; give it on the command line.")
            given = default
        if given is not None:
            return parse(given)
        while True:
            answer = click.prompt(prompt, default=default, err=True, show_default=bool(default))
            try:
                return parse(str(answer))
            except Misused as error:
                remark(str(error))

    def confirm(self, prompt: str, *, default: bool) -> bool:
        return click.confirm(prompt, default=default, err=True) if self.can_ask else default


def _propose(
    questions: _Questions,
    *,
    model: str | None,
    profiles: tuple[str, ...],
    calibration: str | None,
    validation: str | None,
    objective: str | None,
    max_drop: str | None,
    labels: str | None,
    name: str | None,
    version: str,
    key: str | None,
) -> tuple[Project, Preprocess | None]:
    """The project, and preprocessing that it may need."""
    from edgekit.build import proposal
    from edgekit.build.project import Project, read_labels, share, slug, stem_of
    from edgekit.build.project import objective as objective_of
    from edgekit_converters.sources import model_named

    file = questions.answer(
        model, "Model (docs/sources.md has the kinds)", _only_model(), _existing
    )
    signature = proposal.read_signature(model_named(file))
    if questions.can_ask:
        _tell(signature)
        if not profiles:
            _list_profiles()
    chosen = questions.answer(
        ",".join(profiles) or None, "Profiles (names or .toml files, with commas)", None, _profiles
    )
    beside = Path(file).parent  # of a callable: here
    judged = questions.answer(
        validation, "Validation data (- for none)", _beside(beside, "validation.npz"), _data
    )
    ranges = questions.answer(
        calibration, "Calibration data (- for none)", _beside(beside, "calibration.npz"), _data
    )
    best = questions.answer(
        objective, "Best is by latency, size or accuracy", "latency", objective_of
    )
    drop = questions.answer(max_drop, "Greatest loss of the metric", "1%", share)

    media = proposal.media_of(judged) or proposal.media_of(ranges)
    preprocess = proposal.suggest_preprocess(signature.inputs, media)
    wanted = preprocess is not None and questions.confirm(
        f"Write a [preprocess] table, so that files become {preprocess.input!r}?",
        default=media is not None,
    )
    if labels is None and (beside / "labels.txt").is_file():
        labels = str(beside / "labels.txt")
    postprocess = None
    if labels is not None:
        classes = len(read_labels(Path(labels)))
        postprocess = proposal.suggest_postprocess(signature.outputs, classes)
    project = Project(
        model=file,
        name=name if name is not None else slug(stem_of(file)),
        version=version,
        profiles=chosen,
        key=key,
        calibration=ranges,
        validation=judged,
        max_drop=drop,
        objective=best,
        labels=labels,
        preprocess=preprocess if wanted else None,
        postprocess=postprocess,
    )
    return project, None if wanted else preprocess


def _tell(signature: Signature) -> None:
    for what, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            shape = " x ".join(map(str, tensor.shape))
            remark(f"{what} {tensor.name}: {tensor.dtype} [{shape}]")


def _list_profiles() -> None:
    import edgekit_profiles

    for name in edgekit_profiles.names():
        remark(f"  {name:<24}{edgekit_profiles.load(name).title}")


def _only_model() -> str | None:
    found = [path for path in Path().iterdir() if path.suffix in _MODELS]
    return str(found[0]) if len(found) == 1 else None


def _beside(directory: Path, name: str) -> str:
    return str(directory / name) if (directory / name).is_file() else "-"


def _existing(name: str) -> str:
    from edgekit_converters.callables import is_callable_name

    if not Path(name).exists() and not is_callable_name(name):
        raise Misused(f"there is no file {name}: check the path.")
    return name


def _profiles(names: str) -> tuple[str, ...]:
    import edgekit_profiles

    found = tuple(name.strip() for name in names.split(",") if name.strip())
    if not found:
        raise Misused("no profile: name one (edgekit profiles list).")
    for name in found:
        edgekit_profiles.load(name)
    return found


def _data(name: str) -> str | None:
    from edgekit_converters.callables import is_callable_name

    if name == "-":
        return None
    if not Path(name).exists() and not is_callable_name(name):
        raise Misused(f"{name} is no data: give an .npz, a directory, package.module:callable, -.")
    return name
