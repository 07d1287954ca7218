"""edgekit.toml: what it says, what it refuses, and what `edgekit new` suggests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from build_requests import DIGITS
from hypothesis import given
from hypothesis import strategies as st

from edgekit.build.metrics.options import BoxLayout
from edgekit.build.project import FILENAME, Project, find_project, load_project, share, slug
from edgekit.build.proposal import (
    Media,
    media_of,
    project_text,
    read_signature,
    suggest_postprocess,
    suggest_preprocess,
)
from edgekit.build.request import Objective
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import (
    AudioPreprocess,
    Color,
    ImagePreprocess,
    Layout,
    Postprocess,
    TensorSpec,
)


def load(directory: Path, text: str) -> Project:
    path = directory / FILENAME
    path.write_text(text)
    return load_project(path)


def test_paths_of_the_file_are_relative_to_it_and_names_are_left_alone(tmp_path: Path) -> None:
    project = load(
        tmp_path,
        'model = "m.onnx"\ncalibration = "c.npz"\nvalidation = "package.data:rows"\nkey = "/k"\n'
        'labels = "l.txt"\nprofiles = ["raspberry-pi-4", "mine.toml", "./other"]\noutput = "out"\n',
    )
    assert project.model == str(tmp_path / "m.onnx")
    assert project.calibration == str(tmp_path / "c.npz")
    assert project.validation == "package.data:rows"
    assert (project.key, project.labels) == ("/k", str(tmp_path / "l.txt"))
    assert project.output == str(tmp_path / "out")
    assert project.profiles == (
        "raspberry-pi-4", str(tmp_path / "mine.toml"), str(tmp_path / "other"),
    )  # fmt: skip


def test_every_key_reaches_the_request(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    project = load(
        tmp_path,
        """
        model = "M_1.onnx"
        version = "2.0"
        profiles = ["raspberry-pi-4"]
        max_drop = "2%"
        max_ms = 5
        max_mb = 1.5
        objective = "size"
        recipes = ["int8-*"]
        search_time_s = 30
        labels = "labels.txt"
        [metric]
        kind = "detection"
        output = "boxes"
        detection.layout = "corners-score-class"
        [preprocess]
        kind = "image"
        input = "x"
        height = 4
        width = 6
        [postprocess]
        kind = "classify"
        output = "y"
        """,
    )
    request = project.request()
    assert (request.name, request.version, request.profiles[0].name) == (
        "m-1", "2.0", "raspberry-pi-4",
    )  # fmt: skip
    assert (request.max_drop, request.max_ms, request.max_mb) == (0.02, 5, 1.5)
    assert (request.objective, request.recipes) == (Objective.SIZE, ("int8-*",))
    assert request.search_time_s == 30
    assert request.labels == ("cat", "dog")
    assert request.metric == "detection" and request.metric_options.output == "boxes"
    assert request.metric_options.detection.layout is BoxLayout.CORNERS_SCORE_CLASS
    assert request.preprocess == (ImagePreprocess(input="x", height=4, width=6),)
    assert request.postprocess == (Postprocess(output="y"),)


def test_what_is_said_of_the_model_is_kept_apart_from_the_build(tmp_path: Path) -> None:
    about = load(tmp_path, 'model = "m.onnx"\nlabels = "l"\nmax_mb = 1\nmetric = "f1"').about_model
    assert about == Project(labels=str(tmp_path / "l"), metric="f1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("profile = ['demo-small']", "no key profile: did you mean profiles?"),
        ("[preproces]\n", "no key preproces: did you mean preprocess?"),
        ('[preprocess]\nkind = "image"\ncolour = "bgr"', "preprocess.colour: did you mean"),
        ("[metric]\nkind = 'f1'\ntreshold = 1", "metric.treshold: did you mean metric.threshold"),
        ("metric.detection.iuo = 1", "did you mean metric.detection.iou?"),
        ("metric_options = {}", "no key metric_options"),
        ('[preprocess]\nkind = "smell"\n', "$.preprocess"),
        ("labels = 3", "$.labels"),
        ("max_drop = 'half'", "write 0.01 or 1%"),
        ("objective = 'speed'", "latency, size, accuracy"),
        ('[postprocess]\nkind = "classify"\noutput = "y"', "add labels = FILE"),
        ("\x00", "cannot be used"),
        ("model = 'a'\nmodel = 'b'", "cannot be used"),
    ],
)
def test_file_that_is_wrong_is_one_sentence_that_names_it(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(Misused) as error:
        load(tmp_path, text)
    assert told in str(error.value)
    assert str(error.value).startswith(str(tmp_path / FILENAME))


def test_build_without_a_model_says_how_to_name_one() -> None:
    with pytest.raises(Misused, match="edgekit new"):
        Project(profiles=("demo-small",)).request()


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    project = load(tmp_path, 'model = "m"\nprofiles = ["demo-small"]\nlabels = "no.txt"')
    with pytest.raises(Misused, match=r"no\.txt"):
        project.request()


def test_file_is_found_in_the_first_place_that_has_one(tmp_path: Path) -> None:
    (tmp_path / FILENAME).touch()
    assert find_project([tmp_path / "absent", tmp_path]) == tmp_path / FILENAME
    assert find_project([tmp_path / "absent"]) is None


@given(st.text())
def test_slug_of_anything_is_a_model_name(stem: str) -> None:
    Project(model="m", profiles=("demo-small",), name=slug(stem)).request()


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("100%", 1.0)])
def test_share_is_read_as_people_write_it(text: str, value: float) -> None:
    assert share(text) == value


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
FILES = st.text("abc./ #\"'\\é\x7f", min_size=1).map(lambda text: f"dir/{text}x")


@given(
    name=TEXTS,
    key=FILES,
    objective=st.sampled_from(Objective),
    max_drop=st.floats(0, 1),
    preprocess=st.builds(
        ImagePreprocess, input=TEXTS, height=st.integers(1, 9), width=st.integers(1, 9)
    ),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, **fields: Any
) -> None:
    directory = tmp_path_factory.getbasetemp() / "project"
    directory.mkdir(exist_ok=True)
    project = Project(
        model=str(directory / "m.onnx"),
        profiles=("demo-small", str(directory / "local.toml")),
        validation="package.module:rows",
        labels=str(directory / "labels.txt"),
        postprocess=Postprocess(output="y", top_k=3, softmax=True),
        recipes=("int8-*",),
        **(fields | {"key": str(directory / fields["key"])}),
    )
    read = load(directory, project_text(project, directory=directory))
    same = {name: getattr(read, name) for name in Project.__struct_fields__}
    for name in ("model", "key", "output", "labels"):  # one path has many spellings
        expected = getattr(project, name) or str(directory)
        assert Path(same.pop(name)).resolve() == Path(expected).resolve()
    assert same.pop("profiles") == (project.profiles[0], str(directory / "local.toml"))
    assert all(getattr(project, name) == value for name, value in same.items())


def test_table_that_the_data_do_not_need_is_a_comment(tmp_path: Path) -> None:
    perhaps = ImagePreprocess(input="x", height=2, width=3)
    text = project_text(Project(model="m"), directory=tmp_path, perhaps=perhaps)
    assert "# [preprocess]" in text
    assert load(tmp_path, text).preprocess is None
    uncommented = text.replace("# [pre", "[pre")
    for key in ("kind", "input", "height", "width", "layout", "color", "scale", "mean", "std"):
        uncommented = uncommented.replace(f"\n# {key} =", f"\n{key} =")
    assert load(tmp_path, uncommented).preprocess == perhaps


def spec(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("tensor", "layout", "color", "scale"),
    [
        (spec("batch", 3, 20, 30), Layout.NCHW, Color.RGB, 1 / 255),
        (spec(1, 20, 30, 3, dtype="uint8"), Layout.NHWC, Color.RGB, 1.0),
        (spec(1, 1, 20, 30), Layout.NCHW, Color.GRAY, 1 / 255),
    ],
)
def test_input_of_four_axes_is_taken_for_an_image(
    tensor: TensorSpec, layout: Layout, color: Color, scale: float
) -> None:
    found = suggest_preprocess([spec(1, 5), tensor], Media.IMAGES)
    assert isinstance(found, ImagePreprocess)
    assert (found.height, found.width) == (20, 30)
    assert (found.layout, found.color, found.scale) == (layout, color, scale)


def test_window_of_sound_is_only_seen_where_the_data_are_sounds() -> None:
    assert suggest_preprocess([spec(1, 4000)], None) is None
    found = suggest_preprocess([spec(1, 4000)], Media.SOUNDS)
    assert isinstance(found, AudioPreprocess) and found.window_samples == 4000


def test_output_with_a_score_for_each_label_is_classified() -> None:
    outputs = [spec(1, 4), TensorSpec(name="scores", dtype="float32", shape=("n", 10))]
    assert suggest_postprocess(outputs, 10) == Postprocess(output="scores")
    assert suggest_postprocess(outputs, 7) is None


def test_media_are_known_by_their_files(tmp_path: Path) -> None:
    assert media_of(None) is None and media_of(str(tmp_path)) is None
    (tmp_path / "a.WAV").touch()
    assert media_of(str(tmp_path)) is Media.SOUNDS
    (tmp_path / "b.png").touch()
    assert media_of(str(tmp_path)) is Media.IMAGES
    (tmp_path / "c.npz").touch()
    assert media_of(str(tmp_path)) is None


def test_signature_of_a_model_file_is_read_without_building_it() -> None:
    signature = read_signature(DIGITS / "digits.onnx")
    assert signature.inputs[0].shape == ("batch", 1, 28, 28)
    assert signature.outputs[0].name == "logits"


def test_example_describes_its_whole_build() -> None:
    request = load_project(DIGITS / FILENAME).request()
    signature = read_signature(request.model)
    assert request.preprocess[0].input == signature.inputs[0].name
    assert suggest_postprocess(signature.outputs, len(request.labels)) is not None
    assert all(Path(str(data)).is_file() for data in (request.calibration, request.validation))


@pytest.mark.parametrize(
    ("model", "found", "name"),
    [
        ("shop.models:digits", "shop.models:digits", "models"),
        ("weights/minilm", Path("/p/weights/minilm"), "minilm"),
        ("Net v2.pt2", Path("/p/Net v2.pt2"), "net-v2"),
    ],
)
def test_model_is_a_callable_a_directory_or_a_file(
    model: str, found: object, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "edgekit.toml"
    file.write_text(f'model = "{model}"\nprofiles = ["demo-small"]\nconversion_time_s = 9\n')
    asked = load_project(file).request()
    expected = tmp_path / found.relative_to("/p") if isinstance(found, Path) else found
    assert (asked.model, asked.name, asked.conversion_time_s) == (expected, name, 9)
