"""DATA: streamed, checked, the same each time."""

from __future__ import annotations

import sys
import tracemalloc
import wave
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edgekit.build.data import open_data
from edgekit.build.samples import DataRejected, Digest, Row, Sample, fit
from edgekit_contract.errors import Misused
from edgekit_contract.manifest import AudioPreprocess, ImagePreprocess, TensorSpec
from edgekit_converters.graph import inputs_for_missing

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


def samples(rows: list[Row], *specs: TensorSpec) -> list[Sample]:
    return list(fit(iter(rows), specs or (X,), title="data"))


def saved(path: Path, *, compressed: bool = False, **arrays: np.ndarray) -> str:
    with path.open("wb") as stream:
        (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return str(path)


def test_row_without_the_batch_axis_becomes_a_batch_of_one() -> None:
    (sample,) = samples([{"x": np.arange(3, dtype=np.float32)}])
    assert sample.feeds["x"].shape == (1, 3)


def test_row_with_the_batch_axis_is_taken_whole() -> None:
    (sample,) = samples([{"x": np.zeros((5, 3), np.float32), "labels": np.arange(5)}])
    assert sample.feeds["x"].shape == (5, 3)
    assert sample.labels is not None and sample.labels.tolist() == [0, 1, 2, 3, 4]


def test_rows_are_gathered_where_the_model_fixes_the_batch() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(4, 3))
    rows = [{"x": np.full(3, i, np.float32), "labels": np.int64(i)} for i in range(10)]
    found = samples(rows, spec)
    assert [s.feeds["x"][:, 0].tolist() for s in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[1].labels is not None and found[1].labels.tolist() == [4, 5, 6, 7]


def test_scalar_input_stays_a_scalar() -> None:
    spec = TensorSpec(name="rate", dtype="int64", shape=())
    (sample,) = samples([{"rate": np.int32(8000)}], spec)
    assert sample.feeds["rate"].shape == () and sample.feeds["rate"].dtype == np.int64


def test_labels_with_fractions_are_what_should_come_out_and_no_classes() -> None:
    (sample,) = samples([{"x": np.zeros((1, 3), np.float32), "labels": np.float32([[0.5, 2.25]])}])
    assert sample.labels is not None and sample.labels.dtype == np.float64
    assert sample.labels.tolist() == [0.5, 2.25] and sample.classes is None


def test_input_called_labels_is_an_input() -> None:
    spec = TensorSpec(name="labels", dtype="int64", shape=("batch",))
    (sample,) = samples([{"labels": np.int64(3)}], spec)
    assert sample.labels is None and sample.feeds["labels"].tolist() == [3]


@pytest.mark.parametrize(
    ("have", "want", "fine"),
    [
        ("float64", "float32", True),
        ("uint8", "float32", True),
        ("int64", "int32", True),
        ("float32", "int64", False),
        ("int64", "uint8", False),
    ],
)
def test_numbers_are_converted_only_where_they_survive(have: str, want: str, fine: bool) -> None:
    spec = TensorSpec(name="x", dtype=want, shape=("batch", 3))
    row = {"x": np.array([1, 2, 300 if not fine else 3]).astype(have)}
    if fine:
        assert samples([row], spec)[0].feeds["x"].dtype == want
    else:
        with pytest.raises(DataRejected, match="convert the array"):
            samples([row], spec)


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_gives_the_rows_of_its_arrays_again_and_again(tmp_path: Path, compressed: bool) -> None:
    x = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    y = np.arange(1000)
    data = open_data(saved(tmp_path / "d.npz", compressed=compressed, x=x, labels=y))
    assert data.count == 1000
    for _ in range(2):
        found = list(data.samples((X,)))
        assert np.array_equal(np.concatenate([s.feeds["x"] for s in found]), x)
        assert [int(s.labels[0]) for s in found if s.labels is not None] == y.tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_is_never_in_memory_whole(tmp_path: Path, compressed: bool) -> None:
    x = np.zeros((400, 64, 1024), np.float32)  # 100 MiB
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 64, 1024))
    data = open_data(saved(tmp_path / "d.npz", compressed=compressed, x=x))
    del x
    tracemalloc.start()
    assert sum(1 for _ in data.samples((spec,))) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_shards_are_one_after_the_other(tmp_path: Path) -> None:
    for index in range(3):
        saved(tmp_path / f"{index}.npz", x=np.full((2, 3), index, np.float32))
    data = open_data(str(tmp_path))
    assert data.count == 6
    assert [int(s.feeds["x"][0, 0]) for s in data.samples((X,))] == [0, 0, 1, 1, 2, 2]


def test_what_is_no_data_is_wrong_usage() -> None:
    for name in ("absent.npz", "no_such_module_here:f", "os.path:absent", "os:sep"):
        with pytest.raises(Misused):
            open_data(name)


IMAGE = ImagePreprocess(input="x", height=4, width=6, mean=(0.5,), std=(0.5,))


def test_images_are_preprocessed_and_labelled_by_their_folders(tmp_path: Path) -> None:
    for folder, value in (("cat", 0), ("dog", 255)):
        (tmp_path / folder).mkdir()
        picture = Image.new("RGB", (12, 8), (value, value, value))
        picture.save(tmp_path / folder / "a.png")
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 4, 6))
    found = list(open_data(str(tmp_path), preprocess=(IMAGE,)).samples((spec,)))
    assert [s.feeds["x"][0, 0, 0, 0] for s in found] == [-1, 1]
    assert [s.labels.tolist() for s in found if s.labels is not None] == [[0], [1]]


def test_digest_is_of_how_images_are_read_too(tmp_path: Path) -> None:
    """Ranges that were seen of the same files, otherwise scaled, are others."""
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    other = msgspec.structs.replace(IMAGE, mean=(0.0,))
    first, again, scaled = (
        open_data(str(tmp_path), preprocess=(how,)).sha256() for how in (IMAGE, IMAGE, other)
    )
    assert first == again != scaled


def test_images_without_preprocessing_are_wrong_usage(tmp_path: Path) -> None:
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    with pytest.raises(Misused, match=r"edgekit\.toml"):
        open_data(str(tmp_path))


def test_broken_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 4, 6))
    with pytest.raises(DataRejected, match=r"a\.png"):
        list(open_data(str(tmp_path), preprocess=(IMAGE,)).samples((spec,)))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_become_windows(tmp_path: Path, width: int) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(width)
        sound.setframerate(8000)
        half = (192).to_bytes(1, "little") if width == 1 else (1 << (8 * width - 2)).to_bytes(
            width, "little"
        )  # fmt: skip
        sound.writeframes(half * 2 * 250)
    how = AudioPreprocess(input="x", sample_rate_hz=8000, window_samples=100)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 100))
    found = [s.feeds["x"][0] for s in open_data(str(tmp_path), preprocess=(how,)).samples((spec,))]
    assert [w[0] for w in found] == [0.5, 0.5, 0.5]
    assert found[2][50] == 0  # padded


@pytest.mark.parametrize("left", [45, 47, 101, 103])
def test_wav_file_that_is_cut_is_refused_by_name(tmp_path: Path, left: int) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4 * 250))
    path.write_bytes(path.read_bytes()[:left])
    how = AudioPreprocess(input="x", sample_rate_hz=8000, window_samples=100)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 100))
    with pytest.raises(DataRejected, match=r"a\.wav"):
        list(open_data(str(tmp_path), preprocess=(how,)).samples((spec,)))


@pytest.mark.parametrize(("field", "value"), [("flags", 1), ("method", 97)])
def test_npz_that_is_encrypted_or_of_an_unknown_compression_is_refused_by_name(
    tmp_path: Path, field: str, value: int
) -> None:
    path = Path(saved(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32)))
    data = bytearray(path.read_bytes())
    # PKWARE's application note, 4.3.7 and 4.3.12: places in the local header and the directory
    local, directory = {"flags": (6, 8), "method": (8, 10)}[field]
    for signature, place in ((b"PK\3\4", local), (b"PK\1\2", directory)):
        start = data.index(signature) + place
        data[start : start + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataRejected, match=r"d\.npz"):
        list(open_data(str(path)).samples((X,)))


def test_digest_tells_data_apart_and_knows_them_again() -> None:
    def digest(*values: float) -> str:
        made = Digest()
        for value in values:
            made.add(Sample(feeds={"x": np.full((1, 3), value, np.float32)}, labels=None))
        return made.hexdigest()

    assert digest(1, 2) == digest(1, 2) != digest(2, 1)


def feed() -> Iterator[dict[str, np.ndarray]]:
    for index in range(3):
        yield {"x": np.full(3, index, np.float32)}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def rows(:\n", "SyntaxError"),
        ("raise OSError('no camera')\n", "OSError: no camera"),
        ("import module_that_nobody_has\n", "module_that_nobody_has"),
        ("x = 1\n", "rows"),
    ],
)
def test_callable_whose_module_fails_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    (tmp_path / "broken_feeder.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Misused, match=told) as caught:
        open_data("broken_feeder:rows")
    sys.modules.pop("broken_feeder", None)
    assert str(caught.value).startswith("broken_feeder:rows cannot be imported (")
    assert "\n" not in str(caught.value)


def test_callable_is_called_anew_for_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("feed_of_test")
    module.feed = feed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "feed_of_test", module)
    data = open_data("feed_of_test:feed")
    assert [len(list(data.samples((X,)))) for _ in range(2)] == [3, 3]


def test_nan_is_a_missing_value_only_where_the_model_says_so() -> None:
    rows: list[Row] = [{"x": np.float32([1, np.nan, 3])}]
    with pytest.raises(DataRejected, match="has NaN or infinity in 'x', which means nothing to"):
        list(fit(iter(rows), (X,), title="data"))
    (sample,) = fit(iter(rows), (X,), title="data", may_miss={"x"})
    assert np.isnan(sample.feeds["x"]).any()
    rows = [{"x": np.float32([1, np.inf, 3])}]
    with pytest.raises(DataRejected, match="has infinity in 'x'"):
        list(fit(iter(rows), (X,), title="data", may_miss={"x"}))


def test_a_test_for_nan_in_the_midst_of_a_model_says_nothing_of_its_inputs() -> None:
    """PyTorch writes one behind the softmax of attention."""
    nodes = {
        "asked": [("Identity", ["x"], "a"), ("IsNaN", ["a"], "b"), ("Not", ["b"], "y")],
        "amid": [("Softmax", ["x"], "a"), ("IsNaN", ["a"], "b"), ("Not", ["b"], "y")],
    }
    found = {}
    for name, steps in nodes.items():
        graph = helper.make_graph(
            [helper.make_node(op, inputs, [out]) for op, inputs, out in steps],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [helper.make_tensor_value_info("y", TensorProto.BOOL, ["batch", 3])],
        )
        found[name] = inputs_for_missing(helper.make_model(graph))
    assert found == {"asked": {"x"}, "amid": set()}
