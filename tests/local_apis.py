"""The local API in this process: the real server, API and runner over a model on loopback."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from bundles import SmallBundle, null_bundle

from edgekit_agent.api import Api
from edgekit_agent.classification import Classes
from edgekit_agent.connection import HttpResponse
from edgekit_agent.inference import Runner
from edgekit_agent.oip import ServedModel
from edgekit_agent.server import Server
from edgekit_agent.stats import Counters
from edgekit_contract.manifest import TensorSpec
from edgekit_runtime.session import Session, open_session


class Echo:
    """A session whose outputs `out_NAME` are its inputs `NAME`: every dtype, any shape."""

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.inputs = tuple(
            TensorSpec(name=name, dtype=dtype, shape=("rows", "columns"))
            for name, dtype in dtypes.items()
        )
        self.outputs = tuple(
            msgspec.structs.replace(spec, name=f"out_{spec.name}") for spec in self.inputs
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {f"out_{name}": array for name, array in feeds.items()}

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class LocalApi:
    port: int
    counters: Counters
    server: Server


@contextlib.contextmanager
def serving(
    session: Session, *, classes: Mapping[str, Classes] | None = None, last_s: float = 0.0
) -> Iterator[LocalApi]:
    """Serve a session as model `tiny` version `1.0`; `last_s` as for `inference.Runner`."""
    model = ServedModel(
        name="tiny",
        version="1.0",
        platform="null_json",
        inputs=session.inputs,
        outputs=session.outputs,
        classes=classes or {},
    )
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        server = Server([listener])
        counters = Counters(random.Random(1))
        runner: Runner[HttpResponse] = Runner(post=server.post, last_s=last_s)
        server.start(
            Api(model=model, session=session, runner=runner, counters=counters, now_s=server.now_s)
        )
        try:
            yield LocalApi(port=listener.getsockname()[1], counters=counters, server=server)
        finally:
            server.drain()
            assert server.drained.wait(30)


def session_of(bundle: SmallBundle, directory: Path) -> Session:
    """The model of a small bundle, loaded."""
    path = directory / Path(bundle.manifest.model).name
    path.write_bytes(bundle.files[bundle.manifest.model])
    return open_session(bundle.manifest.runtime, path)


def null_session(directory: Path, **fields: object) -> Session:
    """The null model with other fields, such as `delay_s`."""
    bundle = null_bundle()
    model = msgspec.json.decode(bundle.files["files/model.json"]) | fields
    return session_of(
        bundle.with_files(bundle.files | {"files/model.json": msgspec.json.encode(model)}),
        directory,
    )
