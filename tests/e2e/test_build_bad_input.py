"""Bad input: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import msgspec
import numpy as np
import onnx
import pytest
from build_requests import DIGITS, request
from onnx import TensorProto, helper, numpy_helper
from parts import need_command
from refusals import MODEL, file, npz, refusal
from small_models import write_small
from tflite_files import relu_file

import edgekit_profiles
from edgekit.build import build
from edgekit_contract.errors import Misused
from edgekit_contract.profile import RuntimeKind


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, world", b"\x08\x07", b"PK\3\4" + bytes(100), bytes(range(256)) * 8],
    ids=["empty", "text", "no-graph", "zip", "noise"],
)
def test_file_that_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    text = refusal(tmp_path, model=file(tmp_path / "m.onnx", data))
    assert "m.onnx" in text


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_truncated_model_is_refused(tmp_path: Path, share: float) -> None:
    whole = MODEL.read_bytes()
    text = refusal(tmp_path, model=file(tmp_path / "m.onnx", whole[: int(len(whole) * share)]))
    assert "m.onnx" in text


def test_truncated_tflite_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, model=file(tmp_path / "m.tflite", b"\x1c\0\0\0TFL3" + bytes(64)))
    assert "m.tflite" in text


@pytest.mark.parametrize("data", [b"hello, world", MODEL.read_bytes()[:5000]])
def test_file_that_is_named_tflite_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    text = refusal(tmp_path, model=file(tmp_path / "m.tflite", data))
    assert text.startswith("m.tflite is not a LiteRT model") and "ONNX" not in text


def test_tflite_without_outputs_is_refused(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(relu_file(8), 0)
    model.subgraphs[0].outputs = np.zeros(0, np.int32)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    text = refusal(tmp_path, model=file(tmp_path / "m.tflite", bytes(builder.Output())), recipes=())
    assert text == "m.tflite gives nothing: export it with an output."


def test_missing_model_is_wrong_usage(tmp_path: Path) -> None:
    assert "check the path" in refusal(tmp_path, Misused, model=tmp_path / "absent.onnx")


OWN = "com.microsoft"
"""The domain of onnxruntime's own operators."""


def _graph(node: onnx.NodeProto, *, domain: str = "", opset: int = 17) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, None)]
    )
    sets = [helper.make_opsetid("", opset)]
    sets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def test_operator_that_the_runtime_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme")
    onnx.save(_graph(node, domain="acme"), path)
    text = refusal(tmp_path, model=path)
    assert "acme:Frobnicate, which onnxruntime does not have" in text


def _drawing(**seed: float) -> onnx.ModelProto:
    """Adds a little noise to its input."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], scale=1e-6, **seed),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_model_that_draws_other_random_numbers_each_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_drawing(), path)
    text = refusal(tmp_path, model=path)
    assert "m.onnx draws random numbers (RandomNormalLike)" in text and "seed" in text


def test_model_whose_random_numbers_nobody_reads_is_built(tmp_path: Path) -> None:
    model = _drawing()
    model.graph.node[1].input[1] = "x"
    onnx.save(model, tmp_path / "m.onnx")
    assert build(request(tmp_path / "m.onnx", tmp_path / "out", recipes=("float32",))).built


def test_model_that_takes_text_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["word"], ["y"])],
        "g",
        [value("word", TensorProto.STRING, [1])],
        [value("y", TensorProto.STRING, [1])],
    )
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), path)
    text = refusal(tmp_path, model=path)
    assert "m.onnx takes or gives text ('word' is a tensor(string)" in text and "numbers" in text


def test_opset_newer_than_the_profiles_runtime_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(_graph(helper.make_node("Relu", ["x"], ["y"]), opset=24), path)
    profile = edgekit_profiles.load("jetson-orin-nano")
    text = refusal(tmp_path, model=path, profiles=(profile,))
    assert "opset 24" in text and "23" in text


def test_operator_that_the_profiles_runtime_does_not_have_yet_is_refused(tmp_path: Path) -> None:
    """The onnxruntime that builds has it, so loading the model tells nothing."""
    path = tmp_path / "m.onnx"
    onnx.save(_graph(helper.make_node("ScaledSiLU", ["x"], ["y"], domain=OWN), domain=OWN), path)
    profile = edgekit_profiles.load("jetson-orin-nano")
    text = refusal(tmp_path, model=path, profiles=(profile,))
    assert f"{OWN}:ScaledSiLU, which onnxruntime {profile.runtimes[0].version} of" in text


def test_profile_without_the_runtime_is_refused(tmp_path: Path) -> None:
    profile = edgekit_profiles.load("demo-small")
    only_null = msgspec.structs.replace(profile.runtimes[0], kind=RuntimeKind.NULL)
    profile = msgspec.structs.replace(profile, runtimes=(only_null,))
    assert "no onnxruntime" in refusal(tmp_path, profiles=(profile,))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "link.bin", "absent.bin"])
def test_external_data_that_leave_the_models_directory_are_refused(
    tmp_path: Path, location: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4096))
    (source / "link.bin").symlink_to(tmp_path / "weights.bin")
    model = onnx.load_model(write_small("regression", tmp_path))
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    path = source / "m.onnx"
    onnx.save_model(model, path)
    assert location in refusal(tmp_path, model=path)


IMAGE = np.zeros((3, 1, 28, 28), np.float32)
BAD_DATA: dict[str, tuple[Callable[[Path], str], str]] = {
    "nan": (lambda p: npz(p / "d.npz", image=np.full_like(IMAGE, np.nan)), "NaN"),
    "infinity": (lambda p: npz(p / "d.npz", image=np.full_like(IMAGE, np.inf)), "infinity"),
    "shape": (lambda p: npz(p / "d.npz", image=IMAGE[:, :, :20]), "[1, 20, 28]"),
    "rank": (lambda p: npz(p / "d.npz", image=IMAGE[:, 0]), "[28, 28]"),
    "name": (lambda p: npz(p / "d.npz", picture=IMAGE), "'image'"),
    "dtype": (lambda p: npz(p / "d.npz", image=IMAGE.astype("S1")), "float32"),
    "lengths": (lambda p: npz(p / "d.npz", image=IMAGE, labels=np.zeros(2, int)), "lengths"),
    "no rows": (lambda p: npz(p / "d.npz", image=IMAGE[:0]), "no sample"),
    "no arrays": (lambda p: npz(p / "d.npz"), "no array"),
    "fortran": (
        lambda p: npz(p / "d.npz", image=np.asfortranarray(np.ones((3, 1, 28, 28), np.float32))),
        "Fortran",
    ),
    "no archive": (lambda p: str(file(p / "d.npz", b"no zip")), "cannot be read"),
    "cut": (
        lambda p: str(file(p / "d.npz", (DIGITS / "calibration.npz").read_bytes()[:9000])),
        "cannot be read",
    ),
    "empty directory": (lambda p: str((p / "d").mkdir() or p / "d"), "no .npz"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    make, expected = BAD_DATA[case]
    text = refusal(tmp_path, calibration=make(tmp_path))
    assert expected in text.replace("that can be read", "cannot be read")


def test_nan_late_in_the_calibration_data_is_refused_with_its_sample(tmp_path: Path) -> None:
    images = np.zeros((40, 1, 28, 28), np.float32)
    images[33, 0, 5, 5] = np.nan
    data = npz(tmp_path / "d.npz", image=images)
    text = refusal(tmp_path, calibration=data, recipes=("int8-static/*",))
    assert "sample 33" in text


def test_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", image=IMAGE, labels=np.array([1, 2, 10]))
    assert "label 10" in refusal(tmp_path, validation=data)


def test_top1_without_labels_is_refused(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", image=IMAGE)
    assert "labels" in refusal(tmp_path, validation=data, metric="top1")


def test_callable_that_raises_is_refused_with_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feeder_of_test.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    yield {'image': np.zeros((1, 28, 28), np.float32)}\n"
        "    raise OSError('the camera is off')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = refusal(tmp_path, validation="feeder_of_test:samples")
    assert "OSError at sample 1" in text and "the camera is off" in text


def test_bundle_over_the_profiles_budget_is_refused(tmp_path: Path) -> None:
    profile = edgekit_profiles.load("demo-small")
    tight = msgspec.structs.replace(
        profile, budget=msgspec.structs.replace(profile.budget, bundle_mib=0)
    )
    assert "budget" in refusal(tmp_path, profiles=(tight,))


def test_model_without_inputs_is_refused(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones((1, 4), np.float32), "x")
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "constant",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [constant],
    )
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    assert "m.onnx has no input" in refusal(tmp_path, model=path)


def test_bound_that_nothing_keeps_is_refused_with_each_reason(tmp_path: Path) -> None:
    assert "0.01 are allowed" in refusal(tmp_path, max_mb=0.01)


def test_recipe_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    assert "int8-static/" in refusal(tmp_path, Misused, recipes=("int7/*",))


def edgekit(
    *arguments: str, file_bytes: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = dict(os.environ)
    if file_bytes is not None:  # coverage could not write its own file either
        inherited = {k: v for k, v in inherited.items() if not k.startswith("COV")}

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        [sys.executable, "-c", "from edgekit.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, **environment},
        preexec_fn=limit,
        check=False,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_unknown_profile_suggests_the_nearest(tmp_path: Path) -> None:
    done = edgekit("build", str(MODEL), "--profile", "rpi-5", "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "raspberry-pi-5" in last_line(done)
    assert not (tmp_path / "out").exists()


def test_output_directory_that_cannot_be_is_wrong_usage(tmp_path: Path) -> None:
    file(tmp_path / "taken", b"")
    done = edgekit(
        "build", str(MODEL), "--profile", "demo-small", "-o", str(tmp_path / "taken" / "out")
    )
    assert done.returncode == 2
    assert "cannot be written to" in last_line(done)


def test_what_a_refused_build_made_above_its_output_goes_and_what_was_there_stays(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    out = tmp_path / "there" / "a" / "b"
    done = edgekit("build", str(tmp_path / "m.onnx"), "--profile", "demo-small", "-o", str(out))
    assert done.returncode == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_report_that_cannot_be_written_is_said_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "d.html").mkdir()
    for place in (tmp_path / "nodir" / "x.html", tmp_path / "d.html"):
        done = edgekit(
            "build", str(MODEL), "--profile", "demo-small", "--recipe", "float32",
            "--report", str(place), "-o", str(tmp_path / "out"),
        )  # fmt: skip
        assert done.returncode == 2
        assert last_line(done).startswith(f"edgekit: cannot write {place}: ")
        assert not (tmp_path / "out").exists()


def test_full_disk_while_packing_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    # the bundle is the first file of the build that is larger than this
    done = edgekit(
        "build", str(MODEL), "--profile", "demo-small", "--recipe", "float32", "-o", str(out),
        file_bytes=180_000,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "nothing was written" in last_line(done)
    assert not out.exists()


TWO = ("--profile", "demo-small", "--profile", "raspberry-pi-4")


def test_output_disk_with_room_for_one_bundle_of_two_gets_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=300k none {out}"
    need_command(*own_mounts, mount, install="allow user namespaces")
    words = [sys.executable, "-m", "edgekit", "build", str(MODEL), *TWO, "--recipe", "float32",
             "-o", str(out)]  # fmt: skip
    done = subprocess.run(
        [*own_mounts, f'{mount}; "$@"; code=$?; ls -A {out}; exit $code', "sh", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "nothing was written" in last_line(done)
    assert done.stdout == ""


def test_bundle_that_cannot_take_its_place_is_named_with_those_that_did(tmp_path: Path) -> None:
    out = tmp_path / "out"
    taken = out / "digits-1.0.0-raspberry-pi-4.ekb"
    taken.mkdir(parents=True)
    done = edgekit("build", str(MODEL), *TWO, "--recipe", "float32", "-o", str(out))
    assert done.returncode == 1, done.stderr
    assert str(taken) in last_line(done)
    assert "only digits-1.0.0-demo-small.ekb was written" in last_line(done)
    assert sorted(path.name for path in out.iterdir()) == [
        "digits-1.0.0-demo-small.ekb", taken.name,
    ]  # fmt: skip


@pytest.mark.parametrize("size", ["64k", "300k", "500k", "900k"])
def test_full_scratch_disk_is_refused_with_what_to_do(tmp_path: Path, size: str) -> None:
    """Wherever it fills: in this process, in a step's, or when a step tells its result."""
    small = tmp_path / "small"
    small.mkdir()
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    need_command(*own_mounts, f"mount -t tmpfs none {small}", install="allow user namespaces")
    words = [sys.executable, "-m", "edgekit", "build", str(MODEL), "--profile", "demo-small",
             "--calibration", str(DIGITS / "calibration.npz"), "--recipe", "int8-static/*",
             "-o", str(tmp_path / "out")]  # fmt: skip
    mount = f"mount -t tmpfs -o size={size} none {small}"
    done = subprocess.run(
        [*own_mounts, f'{mount} && TMPDIR={small} exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = last_line(done)
    assert str(small) in said and "No space left" in said and "set TMPDIR" in said
    assert not (tmp_path / "out").exists()


def test_wrong_passphrase_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    from edgekit.release.keys import new_key

    new_key(tmp_path / "k", b"right")
    done = edgekit(
        "build", str(MODEL), "--profile", "demo-small", "--key", str(tmp_path / "k"),
        "-o", str(tmp_path / "out"), EDGEKIT_PASSPHRASE="wrong",
    )  # fmt: skip
    assert done.returncode == 1
    assert "passphrase does not open" in last_line(done)
    assert not (tmp_path / "out").exists()


def test_bad_words_on_the_command_line_exit_with_2(tmp_path: Path) -> None:
    for words in (
        ["--max-drop", "much"],
        ["--objective", "beauty"],
        ["--metric", "beauty"],
        ["--max-ms", "-1"],
        ["--name", "Not A Name"],
        ["--validation", str(tmp_path / "absent.npz")],
    ):
        done = edgekit(
            "build", str(MODEL), "--profile", "demo-small", "-o", str(tmp_path / "out"), *words
        )
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), (words, done.stderr)


def test_profile_that_refuses_leaves_no_bundle_of_the_others(tmp_path: Path) -> None:
    small = edgekit_profiles.load("demo-small")
    tight = msgspec.structs.replace(
        small, name="tight", budget=msgspec.structs.replace(small.budget, ram_mib=0)
    )
    text = refusal(tmp_path, profiles=(small, tight))
    assert text.startswith("tight: no variant") and "MiB of memory, 0 are allowed" in text


def test_sample_on_which_the_model_itself_fails_is_named(tmp_path: Path) -> None:
    """Token 99 is past the end of an embedding of 20."""
    model = write_small("integer_inputs", tmp_path)
    ids = np.zeros((6, 4), np.int64)
    ids[4, 2] = 99
    data = npz(tmp_path / "d.npz", ids=ids)
    assert "sample 4" in refusal(tmp_path, model=model, name="m", validation=data)
    text = refusal(tmp_path, model=model, name="m", calibration=data, recipes=("int8-static/*",))
    assert "sample 4" in text


def test_weights_may_not_hide_past_the_end_of_their_file(tmp_path: Path) -> None:
    model = onnx.load_model(write_small("regression", tmp_path))
    path = tmp_path / "m.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    with (tmp_path / "weights.bin").open("r+b") as stream:
        stream.truncate(20)
    assert "cut short" in refusal(tmp_path, model=path)


def test_neither_the_model_nor_its_data_are_touched(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.load_model(write_small("several_outputs", tmp_path))
    onnx.save_model(
        model, source / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    for path in source.iterdir():
        path.chmod(0o444)
    build(
        request(
            source / "m.onnx", tmp_path / "out", recipes=("float32-optimized",), search_time_s=0.5
        )
    )
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    assert before == after


@pytest.mark.parametrize("twice", ["x", "y"])
def test_output_named_as_another_value_is_refused(tmp_path: Path, twice: str) -> None:
    model = _graph(helper.make_node("Relu", ["x"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info(twice, TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "m.onnx")
    assert f"'{twice}' more than once" in refusal(tmp_path, model=tmp_path / "m.onnx")


def test_model_that_wants_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    model = _graph(helper.make_node("Expand", ["x", "sides"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**9, 4]), "sides"))
    onnx.save(model, tmp_path / "m.onnx")
    text = refusal(tmp_path, model=tmp_path / "m.onnx")
    assert "runs on no made-up input" in text and "onnxruntime_src" not in text
