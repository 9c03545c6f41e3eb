"""The sentences that errors become."""

from __future__ import annotations

import pytest

from sta.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("torn\nat byte 3"), "torn"), (RuntimeError(), "RuntimeError"), (KeyError("a"), "'a'")],
)
def test_the_first_line_of_an_error_or_its_class(error: Exception, said: str) -> None:
    assert first_line(error) == said
