"""What a run's folder knows of its corpus: the attributes that captions name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sta.config.recipe import load_recipe
from sta.data.rows import Truth
from sta.distributed.sharding import IGNORE_INDEX
from sta.errors import StaError
from sta.training.workspace import UNSAID, Workspace

RED = Truth("bird", {"head": "red", "size": "small"}, {"head": "red"})
BLUE = Truth("bird", {"head": "blue", "size": "large"}, {"head": "blue", "size": "large"})
FLOWER = Truth("flower", {"petals": "red"}, {"petals": "red"})


def workspace_of(truths: dict[str, Truth]) -> Workspace:
    made: Any = Workspace(load_recipe("garden-mini"), Path("runs"))
    made.corpus = SimpleNamespace(truths=truths, column={"id": list(truths)}.__getitem__)
    return made


def test_named_attributes_are_numbered_and_the_unsaid_are_told_apart() -> None:
    found = workspace_of({"a": RED, "b": FLOWER, "c": BLUE}).attributes
    assert found.sizes == {"head": 3, "kind": 3, "petals": 2, "size": 2}
    head, kind, petals, size = found.values.T.tolist()
    assert head[1] == petals[0] == petals[2] == size[0] == size[1] == UNSAID
    assert len({*head}) == 3
    assert kind[0] == kind[2] != kind[1] != UNSAID
    assert UNSAID not in (petals[1], size[2])


def test_rows_of_which_nothing_is_known_are_not_asked_for_attributes() -> None:
    """As those of a part of a mixture: a loss that took them for unsaid would teach to say nothing."""
    made = workspace_of({"a": RED, "b": BLUE})
    made.corpus.column = {"id": ["a", "x", "b"]}.__getitem__  # type: ignore[method-assign, assignment]
    values = made.attributes.values
    assert (values[1] == IGNORE_INDEX).all()
    assert (values[[0, 2]] != IGNORE_INDEX).all()


def test_a_mended_recording_makes_a_corpus_of_its_own(tmp_path: Path) -> None:
    line = '{"audio": "a.wav", "image": "a.png", "text": "a bird", "language": "en"}'
    (tmp_path / "metadata.jsonl").write_text(line)
    recipe = load_recipe("garden-tiny", [f"corpus={{name: folder, root: {tmp_path}, size: 16}}"])
    before, again = (Workspace(recipe, tmp_path).cache for _ in range(2))
    assert before == again
    (tmp_path / "a.wav").write_bytes(b"mended")
    assert Workspace(recipe, tmp_path).cache != before


def test_a_corpus_that_does_not_know_its_attributes_says_so() -> None:
    with pytest.raises(StaError, match="does not know what its captions name"):
        workspace_of({}).attributes  # noqa: B018
