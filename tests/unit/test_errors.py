"""What an error says is fit for a terminal, whoever wrote part of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgekit_contract.errors import BundleRejected, EdgekitError, Reason, printable


@given(st.text())
def test_no_error_carries_a_control_character(text: str) -> None:
    assert str(EdgekitError(text)).isprintable()


@given(st.text(alphabet=st.characters(categories=["L", "N", "P"])))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_detail_of_a_rejection_is_cut() -> None:
    error = BundleRejected(Reason.BAD_PATH, "x" * 100_000)
    assert len(str(error)) < 500


def test_reason_and_bundle_are_carried_as_values() -> None:
    error = BundleRejected(Reason.TOO_LARGE, "5 GiB", bundle="a.ekb")
    assert (error.reason, error.detail, error.bundle) == (Reason.TOO_LARGE, "5 GiB", "a.ekb")
    assert str(error) == "a.ekb rejected: over a size or count limit (5 GiB)."
