"""A slot holds a bundle and nothing of the one before, nor does what was made of that."""

from __future__ import annotations

from pathlib import Path

from bundles import KEY, null_bundle

from edgekit_agent.slots import cache_of
from edgekit_agent.staging import Staging


def test_what_a_runtime_kept_of_a_slot_goes_with_what_the_slot_held(tmp_path: Path) -> None:
    bundle = null_bundle()
    downloads, slot, active = tmp_path / "downloads", tmp_path / "m" / "a", tmp_path / "m" / "b"
    downloads.mkdir()
    for place in (slot, active):
        cache_of(place).mkdir(parents=True)
        (cache_of(place) / "model.engine").write_bytes(b"made of the bundle before")
    for entry in bundle.manifest.files:
        (downloads / entry.sha256).write_bytes(bundle.files[entry.path])
    staging = Staging(downloads=downloads, slot=slot, active=active)
    staging.look(bundle.manifest)
    staging.stage(bundle.manifest, bundle.envelope(KEY))
    assert not cache_of(slot).exists()
    assert (cache_of(active) / "model.engine").is_file(), "what serves keeps its own"
    assert (slot / bundle.manifest.model).is_file()
