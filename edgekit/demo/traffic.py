"""Live requests to a device's local API: real digits, one at a time and in small batches."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np

__all__ = ["Traffic"]

_BATCHES = (1, 1, 4)
_PAUSE_S = 0.02


class Traffic:
    """A client that keeps asking one device what its digits are, until it is stopped."""

    def __init__(self, port: int, model: str, samples: Path) -> None:
        self._port, self._model = port, model
        with np.load(samples) as data:
            self._images, self._labels = data["image"], data["labels"]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answered: Counter[str] = Counter()
        """Answered requests by the version that answered."""
        self.failed: Counter[str] = Counter()
        """Failed requests by what they were told."""
        self.images = 0
        self.correct = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        at = round_ = 0
        while not self._stop.wait(_PAUSE_S):
            count = _BATCHES[round_ % len(_BATCHES)]
            chosen = np.arange(at, at + count) % len(self._images)
            at, round_ = at + count, round_ + 1
            self._ask(self._images[chosen], self._labels[chosen])

    def _ask(self, images: np.ndarray, labels: np.ndarray) -> None:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "FP32",
                        "shape": list(images.shape),
                        "parameters": {"binary_data_size": images.nbytes},
                    }
                ]
            }
        ).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(
                "POST",
                f"/v2/models/{self._model}/infer",
                head + images.tobytes(),
                {
                    "Inference-Header-Content-Length": str(len(head)),
                    "Content-Type": "application/octet-stream",
                },
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            with self._lock:
                self.failed[type(error).__name__] += 1
            return
        finally:
            connection.close()
        with self._lock:
            if response.status != 200:
                self.failed[f"{response.status} {answer.get('error', '')}"[:100]] += 1
                return
            self.answered[answer["model_version"]] += 1
            logits = np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
            self.images += len(labels)
            self.correct += int((logits.argmax(axis=1) == labels).sum())
