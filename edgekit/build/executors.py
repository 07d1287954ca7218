"""Executors by URL: where builds run when there are several.

Invariant: an executor is any of `concurrent.futures`; what it needs is imported when it is used.
A scheme that is not known here may be brought by an installed package, as an entry point of the
group `edgekit.executors`: its name is the scheme, and it is called with the URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

from edgekit_contract.errors import Misused, Refused

__all__ = ["ENTRY_POINTS", "MAX_JOBS", "is_local", "open_executor"]

ENTRY_POINTS: Final = "edgekit.executors"
MAX_JOBS: Final = 256
_CONNECT_S: Final = 10.0
_GRACE_S: Final = 10.0
"""For a worker to put away its scratch files, once what started it has died."""

Factory = Callable[[str], AbstractContextManager[Executor]]


def open_executor(url: str) -> AbstractContextManager[Executor]:
    """The executor that a URL names, shut down at the end of the block.

    Errors: `Misused` for a URL that names none, `Refused` where it cannot be reached.
    """
    scheme = urlsplit(url).scheme
    if scheme in _FACTORIES:
        return _FACTORIES[scheme](url)
    brought = {p.name: p for p in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if scheme in brought:
        factory: Factory = brought[scheme].load()
        return factory(url)
    known = ", ".join(f"{name}://" for name in sorted({*_FACTORIES, *brought}))
    raise Misused(
        f"there is no executor {url!r}: begin with one of {known}, or install a package that "
        "brings this one."
    )


def is_local(url: str) -> bool:
    """Whether all that it runs runs on this machine."""
    return urlsplit(url).scheme == "process"


@contextlib.contextmanager
def _processes(url: str) -> Iterator[Executor]:
    """`process://N`: processes of this machine, spawned, so that they share nothing with this."""
    count = urlsplit(url).netloc
    if not (count.isdecimal() and 1 <= int(count) <= MAX_JOBS):
        raise Misused(f"{url!r} names no number of processes: write process://2, or --jobs 2.")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        int(count),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others and child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGINT)  # it puts away its scratch files
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: whoever asked is gone, and so is all reason to go on."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    # a caller in the background may have been started with SIGINT ignored, and handed that down
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="edgekit-parent", daemon=True).start()


@contextlib.contextmanager
def _dask(url: str) -> Iterator[Executor]:
    """`dask://HOST:PORT`: the workers of a Dask scheduler."""
    address = urlsplit(url).netloc
    if ":" not in address:
        raise Misused(f"{url!r} names no scheduler: write dask://HOST:PORT, such as port 8786.")
    try:
        from distributed import Client
    except ImportError as error:
        raise Misused(
            "dask:// needs Dask, which is not installed: pip install 'edgekit[dask]'."
        ) from error
    try:
        client = Client(f"tcp://{address}", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise Refused(
            f"no Dask scheduler answers at {address}: start one (dask scheduler), or check the "
            "address."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_S)
        except (TimeoutError, asyncio.TimeoutError) as error:  # one since Python 3.11
            raise Refused(
                f"the Dask scheduler at {address} has no worker: start one (dask worker {address})."
            ) from error
        with client.get_executor() as executor:
            yield executor


_FACTORIES: Final[Mapping[str, Factory]] = {"process": _processes, "dask": _dask}
