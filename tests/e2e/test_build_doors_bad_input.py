"""Models of other frameworks that cannot be built: a sentence each, and nothing is run or left."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import door_models
import numpy as np
import pytest
from command_line import edgekit
from parts import need_package

from edgekit.build.data import open_data
from edgekit.build.material import gather
from edgekit_contract.errors import EdgekitError, Misused, Refused
from edgekit_converters.isolation import Workshop
from edgekit_converters.sources import open_source

WARM = (
    "torch",
    "torch.onnx",
    "skl2onnx",
    "onnxmltools",
    "skops.io",
    "transformers.models.bert.modeling_bert",
)
DOORS = "scripts/models installs what the doors need"


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    """With the frameworks in it, so that each case does not import them anew."""
    for module in ("torch", "onnxscript", "sklearn", "skops", "xgboost", "lightgbm"):
        need_package(module, install=DOORS)
    with Workshop(warm=WARM) as opened:
        yield opened


def refusal(
    model: Path | str, scratch: Path, workshop: Workshop, *, conversion_s: float = 300.0
) -> str:
    """What the user is told."""
    inner = scratch / "scratch"
    inner.mkdir()
    with pytest.raises(EdgekitError) as caught:
        open_source(model, scratch=inner, run=workshop.run, conversion_s=conversion_s)
    text = str(caught.value)
    assert isinstance(caught.value, Refused | Misused)
    assert text.endswith(".") and "\n" not in text and 20 < len(text) < 700, text
    assert str(scratch) not in text and "/tmp/edgekit-" not in text
    return text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("without_inputs", "returned a module with no example inputs: return (module, inputs)"),
        ("a_number", "returned a int: return a model of LightGBM, PyTorch"),
        ("raising", "raised RuntimeError: weights.npz is not there: mend that function."),
        ("no_such_function", "cannot be imported (AttributeError"),
        ("crashing", "failed: it crashed (SIGSEGV); mend that function."),
        ("eating_memory", "it needs more than 4096 MiB of memory"),
        ("unfitted", "is a LogisticRegression that is not fitted: call its fit first."),
        ("without_converter", "skl2onnx has no converter for Swapper"),
        ("with_an_operator_of_its_own", "no ONNX form of the operator acme.frobnicate"),
        ("branching_on_data", "change forward so that torch.export can trace it"),
    ],
)
def test_callable_that_gives_no_model_is_named(
    name: str, told: str, tmp_path: Path, workshop: Workshop
) -> None:
    text = refusal(f"bad_callables:{name}", tmp_path, workshop)
    assert f"bad_callables:{name}" in text and told in text


def test_callable_that_hangs_is_stopped_in_its_time(tmp_path: Path, workshop: Workshop) -> None:
    began = time.monotonic()
    text = refusal("bad_callables:hanging", tmp_path, workshop, conversion_s=1)
    assert text == (
        "converting bad_callables:hanging failed: it did not end within 1 s; give it longer "
        "(--conversion-time), or convert it to ONNX yourself."
    )
    assert time.monotonic() - began < 10


def test_callable_that_fills_the_disk_is_stopped(tmp_path: Path, workshop: Workshop) -> None:
    text = refusal("bad_callables:filling_the_disk", tmp_path, workshop)
    assert "MiB to the disk and was stopped" in text
    assert list((tmp_path / "scratch" / "conversion").iterdir()) == []


def test_callable_that_makes_another_model_each_time_is_refused(
    tmp_path: Path, workshop: Workshop
) -> None:
    source = open_source(
        "bad_callables:unseeded", scratch=tmp_path, run=workshop.run, conversion_s=300
    )
    data = open_data(door_models.digits_data(tmp_path / "v.npz"))
    with pytest.raises(Refused, match="makes another model, or other inputs, each time"):
        gather(source, data, None, normalizes=False, scratch=tmp_path, run=workshop.run)


def test_command_refuses_with_exit_code_1_and_writes_nothing(tmp_path: Path) -> None:
    answer = edgekit(
        "build", "bad_callables:raising", "--profile", "demo-small", "-o", tmp_path / "out"
    )
    assert answer.code == 1
    assert answer.err.strip().splitlines()[-1].startswith("edgekit: bad_callables:raising raised")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# Files


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.witness),)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Path:
    """A sound `.pt2`."""
    import torch

    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    torch.export.save(torch.export.export(module, (torch.zeros(2, 8),)), path)
    return path


def rewritten(program: Path, out: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with entries changed; an entry that becomes empty is left out."""
    with zipfile.ZipFile(program) as given, zipfile.ZipFile(out, "w") as made:
        for name in given.namelist():
            if content := change(name, given.read(name)):
                made.writestr(name, content)
    return out


def test_sample_inputs_that_would_run_code_do_not(
    program: Path, tmp_path: Path, workshop: Workshop
) -> None:
    import io

    import torch

    witness, data = tmp_path / "witness", io.BytesIO()
    torch.save(((Bomb(witness),), {}), data)
    model = rewritten(
        program,
        tmp_path / "m.pt2",
        lambda name, content: data.getvalue() if "sample_inputs" in name else content,
    )
    refusal(model, tmp_path, workshop)
    assert not witness.exists()


def test_size_that_would_run_code_does_not(
    program: Path, tmp_path: Path, workshop: Workshop
) -> None:
    witness = tmp_path / "witness"
    attack = json.dumps({"as_expr": {"expr_str": f"__import__('os').mkdir('{witness}')"}})
    model = rewritten(
        program,
        tmp_path / "m.pt2",
        lambda name, content: (
            re.sub(rb'\{"as_int": ?8\}', attack.encode(), content)
            if name.endswith("model.json")
            else content
        ),
    )  # fmt: skip
    assert "a size is" in refusal(model, tmp_path, workshop)
    assert not witness.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda name, content: b"" if name.endswith("weight_0") else content,
        lambda name, content: content[: len(content) // 2] if "weight_0" in name else content,
        lambda name, content: b"{}" if name.endswith("model.json") else content,
        lambda name, content: b"" if name.endswith("model.json") else content,
        lambda name, content: content[:500] if name.endswith("model.json") else content,
        lambda name, content: b"" if name.endswith("weights_config.json") else content,
        lambda name, content: content.replace(b"aten.relu.", b"aten.nosuch."),
    ],
    ids="no-weight short-weight empty-program no-program cut-program no-config operator".split(),
)
def test_broken_program_is_refused(
    spoil: Callable[[str, bytes], bytes], program: Path, tmp_path: Path, workshop: Workshop
) -> None:
    text = refusal(rewritten(program, tmp_path / "m.pt2", spoil), tmp_path, workshop)
    assert "m.pt2" in text


def test_skops_file_with_types_of_its_own_is_refused_with_their_names(
    tmp_path: Path, workshop: Workshop
) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from skops import io

    made = make_pipeline(FunctionTransformer(np.linalg.norm))
    io.dump(made, tmp_path / "m.skops")
    text = refusal(tmp_path / "m.skops", tmp_path, workshop)
    assert "holds types that skops does not trust (numpy.linalg.norm)" in text


def skops_file(path: Path, change: Callable[[str], str]) -> Path:
    from sklearn.naive_bayes import GaussianNB
    from skops import io

    features, classes, _, _ = door_models.tables("breast_cancer")
    io.dump(GaussianNB().fit(features, classes), path)
    with zipfile.ZipFile(path) as given:
        entries = {name: given.read(name) for name in given.namelist()}
    entries["schema.json"] = change(entries["schema.json"].decode()).encode()
    with zipfile.ZipFile(path, "w") as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return path


def test_estimator_of_another_version_is_refused_with_the_version_to_install(
    tmp_path: Path, workshop: Workshop
) -> None:
    import sklearn

    old = skops_file(tmp_path / "m.skops", lambda text: text.replace(sklearn.__version__, "1.2.3"))
    text = refusal(old, tmp_path, workshop)
    assert f"was saved by scikit-learn 1.2.3, and here is {sklearn.__version__}" in text
    assert "pip install scikit-learn==1.2.3" in text


@pytest.mark.parametrize("schema", ["", "[]", "{}", '{"__class__": "system"}'])
def test_broken_skops_file_is_refused(schema: str, tmp_path: Path, workshop: Workshop) -> None:
    text = refusal(skops_file(tmp_path / "m.skops", lambda _: schema), tmp_path, workshop)
    assert "m.skops" in text


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["m.json", "m.ubj", "m.txt"])
def test_trees_that_are_cut_short_are_refused(
    name: str, share: float, tmp_path: Path, workshop: Workshop, trees: Path
) -> None:
    whole = (trees / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    text = refusal(tmp_path / name, tmp_path, workshop)
    assert name in text


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Path:
    import lightgbm
    import xgboost

    place = tmp_path_factory.mktemp("trees")
    features, classes, _, _ = door_models.tables("breast_cancer")
    booster = xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(features, classes)
    booster.save_model(place / "m.json")
    booster.save_model(place / "m.ubj")
    made = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(features, classes)
    made.booster_.save_model(place / "m.txt")
    return place


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_package("transformers", install=DOORS)
    import transformers

    place = tmp_path_factory.mktemp("hf") / "tiny"
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(place)
    return place


def with_config(place: Path, **changes: object) -> None:
    config = json.loads((place / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "needs code of its own"),
        ({"architectures": ["LlamaNext"]}, "is a LlamaNext, which transformers"),
        ({"architectures": ["logging"]}, "is a logging, which transformers"),
        ({"architectures": None}, "names no architecture"),
        ({"is_encoder_decoder": True}, "is an encoder with a decoder"),
        ({"quantization_config": {"quant_method": "awq"}}, "has quantized weights"),
        ({"architectures": ["BertForMaskedLM"]}, "has no weights for"),
        ({"hidden_size": 32}, "does not open tiny"),
        ({"hidden_size": "x"}, "does not open tiny"),
    ],
)
def test_hugging_face_directory_that_does_not_fit_is_refused(
    changes: dict[str, object], told: str, tiny_bert: Path, tmp_path: Path, workshop: Workshop
) -> None:
    place = shutil.copytree(tiny_bert, tmp_path / "tiny")
    with_config(place, **changes)
    assert told in refusal(place, tmp_path, workshop)


def test_weights_that_are_cut_short_are_refused(
    tiny_bert: Path, tmp_path: Path, workshop: Workshop
) -> None:
    place = shutil.copytree(tiny_bert, tmp_path / "tiny")
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "does not open tiny" in refusal(place, tmp_path, workshop)


def test_pickle_beside_safetensors_is_not_opened(
    tiny_bert: Path, tmp_path: Path, workshop: Workshop
) -> None:
    place, witness = shutil.copytree(tiny_bert, tmp_path / "tiny"), tmp_path / "witness"
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(witness)))
    open_source(place, scratch=tmp_path, run=workshop.run, conversion_s=300)
    assert not witness.exists()
