"""What it costs to run a bundle on its profile's CPU, emulated.

    python benchmarks/emulation.py [--model NAME]... [--profile P] [--inputs N] [--chosen]
        [--markdown]

Each model, as float32, is sealed for the profile with N samples of its validation data as golden
vectors, whose outputs onnxruntime gives on this machine; then it is emulated as `edgekit build
--emulate` does it, from verifying the files to the verdict. `digits` is the model of
examples/digits. "Start" is the same for a model of one product: Python, numpy, the runtime and the
agent. With `--chosen` what a build chooses for the profile is emulated, too, on the golden vectors
of its bundle. The sysroot is made first where it is missing, and not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import machine
import numpy as np
import real_models
from real_models import RealModel

import edgekit_profiles
from edgekit.build import build
from edgekit.build.data import open_data
from edgekit.build.pack import Contents, Sealed, seal
from edgekit.build.report import Outcome
from edgekit.emulation import Emulated, Sysroot, emulate, set_up
from edgekit_contract.manifest import Golden, Provenance, Tolerance
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_converters.proof import Signature
from edgekit_runtime.golden import GoldenVector, golden_bytes, stored
from edgekit_runtime.session import SessionOptions, open_session

_ONNX: Final = RuntimeKind.ONNXRUNTIME
_RELATIVE: Final = 1e-3
"""Of an output's greatest value: float32 sums in another order, on another CPU."""
_DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"


def digits(_: Path) -> RealModel:
    return RealModel(
        name="digits",
        model=_DIGITS / "digits.onnx",
        calibration=None,
        validation=_DIGITS / "validation.npz",
    )


MODELS: Final[Mapping[str, Callable[[Path], RealModel]]] = {
    "efficientnet-lite0": lambda d: real_models.efficientnet(d, crops=1, validation_crops=40),
    "silero-vad": real_models.silero_vad,
    "magika": real_models.magika,
    "minilm": lambda d: real_models.minilm(d, sentences=60),
    "digits": digits,
}


def sealed(real: RealModel, profile: Profile, inputs: int) -> tuple[Sealed, float]:
    """A bundle of the model as it is, and the seconds that this machine takes for its inputs."""
    runtime = profile.runtime(_ONNX)
    if runtime is None:
        raise SystemExit(f"{profile.name} has no onnxruntime: choose another --profile")
    session = open_session(_ONNX, real.model, SessionOptions(threads=runtime.threads))
    samples = open_data(str(real.validation)).samples(session.inputs)
    vectors, host_s = [], 0.0
    for sample in islice(samples, inputs):
        began = time.perf_counter()
        outputs = session.run(sample.feeds)
        host_s += time.perf_counter() - began
        vectors.append(
            GoldenVector(
                inputs={name: stored(array) for name, array in sample.feeds.items()},
                outputs={name: stored(array) for name, array in outputs.items()},
            )
        )
    tolerances = {
        spec.name: Tolerance(
            absolute=_RELATIVE * max(float(np.abs(v.outputs[spec.name]).max()) for v in vectors)
        )
        for spec in session.outputs
    }
    contents = Contents(
        name=real.name,
        version="1.0",
        profile=profile,
        runtime=runtime,
        model=real.model,
        signature=Signature(inputs=session.inputs, outputs=session.outputs),
        golden=Golden(count=len(vectors), tolerances=tolerances, source="validation"),
        golden_data=golden_bytes(vectors),
        labels=(),
        preprocess=(),
        postprocess=(),
        report=b"{}",
        min_runtime_version=runtime.version,
        features=(),
        ir=None,
        opset=None,
        peak_ram_bytes=0,
        provenance=Provenance(source_name=real.model.name, source_sha256="", recipe="float32"),
    )
    return seal(contents, None), host_s


def chosen(
    real: RealModel, profile: Profile, sysroot: Sysroot, output: Path
) -> tuple[str, dict[str, Any]]:
    """What a build with default settings chooses for the profile, and its row."""
    found: list[Emulated] = []
    request = real.request(profile, output)
    result = build(request, gate=lambda _, sealed: found.append(emulate(sealed, profile, sysroot)))
    report = result.built[0].report
    size = next(c.size_bytes for c in report.candidates if c.outcome is Outcome.CHOSEN)
    return f"{real.name}, {report.chosen}", _row(found[0], size or 0)


def _row(told: Emulated, size_bytes: int) -> dict[str, Any]:
    return {
        "bytes": size_bytes,
        "inputs": told.vectors,
        "emulated_s": told.seconds,
        "emulated_cpu_s": told.cpu_s,
    }


def one_product(directory: Path) -> RealModel:
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "start",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = directory / "start.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    data = directory / "start.npz"
    with data.open("wb") as stream:
        np.savez(stream, x=np.ones((1, 1, 4), np.float32))
    return RealModel(name="start", model=model, calibration=None, validation=data)


def measure(
    names: list[str], profile: Profile, inputs: int, *, with_chosen: bool
) -> dict[str, Any]:
    """Seconds by model; "start" first."""
    sysroot = set_up(profile, say=lambda what: print(f"{what} ...", file=sys.stderr))
    found = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-emulation-") as directory:
        for name in ("start", *names):
            print(f"{name} ...", file=sys.stderr, flush=True)
            real = (
                one_product(Path(directory)) if name == "start" else MODELS[name](Path(directory))
            )
            bundle, host_s = sealed(real, profile, 1 if name == "start" else inputs)
            if name == "start":
                emulate(bundle, profile, sysroot)  # leaves Python's bytecode and the page cache
            told = emulate(bundle, profile, sysroot)
            found[name] = _row(told, real.model.stat().st_size) | {"host_s": host_s}
            if with_chosen and name != "start":
                title, row = chosen(real, profile, sysroot, Path(directory) / f"{name}-chosen")
                found[title] = row
    return {"profile": profile.name, "core": told.core, "runtime": told.runtime, "models": found}


def markdown(results: Mapping[str, Any]) -> None:
    print(f"{results['profile']}: {results['runtime']} on a {results['core']}\n")
    print("| model | MB | inputs | emulated s | CPU s | this machine s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in results["models"].items():
        here = f"{row['host_s']:.2f}" if "host_s" in row else ""
        print(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {row['inputs']} "
            f"| {row['emulated_s']:.1f} | {row['emulated_cpu_s']:.1f} | {here} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    parser.add_argument("--profile", default="raspberry-pi-4")
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--chosen", action="store_true", help="what builds choose, too")
    parser.add_argument("--markdown", action="store_true", help="print the table of the docs")
    given = parser.parse_args()
    names = given.model or [name for name in MODELS if name != "digits"]
    profile = edgekit_profiles.load(given.profile)
    results = measure(names, profile, given.inputs, with_chosen=given.chosen)
    if given.markdown:
        markdown(results)
    else:
        machine.emit(results)


if __name__ == "__main__":
    main()
