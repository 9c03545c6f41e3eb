"""Garden as a corpus: what its splits promise, on a tiny one with half of the combinations held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sta.config.cards import load_language
from sta.data.corpora.garden.corpus import SCENES_PER_SHARD, GardenSettings, GardenSource, world_of
from sta.data.corpora.garden.world import COLOUR_SLOTS, COLOURS, Scene
from sta.data.rows import Corpus, Truth
from sta.data.synthesis.espeak import speakers
from sta.errors import RecipeError
from tests.conftest import TINY_WORLD, tiny_garden, write_corpus

LANGUAGES = ("en", "ar")
SIZES = {"train": 24, "validation": 4, "seen": 10, "voice": 10, "combination": 10, "both": 10, "swap": 6}
NEW_COMBINATIONS, NEW_VOICES = {"combination", "both"}, {"voice", "both", "swap"}


def truth(corpus: Corpus, row: int) -> Truth:
    return corpus.truths[corpus.column("id")[row]]


def held_out(corpus: Corpus, row: int) -> bool:
    known = truth(corpus, row)
    return world_of(TINY_WORLD).held_out(Scene(known.kind, known.attributes, "sad", 0), 0.5)


def test_rows_are_those_that_the_settings_ask_for(garden_corpus: Corpus) -> None:
    splits = garden_corpus.column("split")
    for split, scenes in SIZES.items():
        each = {"train": 2, "swap": 2}.get(split, 1)  # a phrase beside each caption, two sides of a swap
        for language in LANGUAGES:
            assert len(garden_corpus.select(split, language)) == scenes * each
    assert set(splits) == set(SIZES)
    ids = garden_corpus.column("id")
    assert len(set(ids)) == len(ids) == len(garden_corpus.truths)


def test_held_out_combinations_are_never_trained_on(garden_corpus: Corpus) -> None:
    for split in ("train", "validation", "seen", "voice"):
        assert not any(held_out(garden_corpus, r) for r in garden_corpus.select(split)), split
    for split in NEW_COMBINATIONS:
        assert all(held_out(garden_corpus, r) for r in garden_corpus.select(split)), split


def test_test_voices_are_never_trained_on(garden_corpus: Corpus) -> None:
    for code in LANGUAGES:
        card = load_language(code).speech
        train, test = ({v.name for v in pool} for pool in speakers(card.voices, card.test_voices))
        assert not train & test
        for split in SIZES:
            heard = {garden_corpus.column("speaker")[r] for r in garden_corpus.select(split, code)}
            assert heard <= (test if split in NEW_VOICES else train), split
            assert len(heard) > 1


def test_one_picture_per_scene_and_none_across_splits(garden_corpus: Corpus) -> None:
    picture_of, first = garden_corpus.image_index
    splits: dict[int, set[str]] = {}
    for number, split in zip(picture_of, garden_corpus.column("split"), strict=True):
        splits.setdefault(int(number), set()).add(split)
    assert all(len(s) == 1 for s in splits.values())
    assert len(first) == sum(SIZES.values()) + SIZES["swap"]
    shown: dict[int, set[bytes]] = {}
    for row, number in enumerate(picture_of):
        shown.setdefault(int(number), set()).add(garden_corpus.table[row]["image"]["bytes"])
        assert truth(garden_corpus, row).attributes == truth(garden_corpus, int(first[number])).attributes
    assert all(len(pictures) == 1 for pictures in shown.values())
    assert len({p for ps in shown.values() for p in ps}) == len(first)


def test_captions_say_what_the_picture_shows(garden_corpus: Corpus) -> None:
    world = world_of(TINY_WORLD)
    for row in range(len(garden_corpus)):
        known = truth(garden_corpus, row)
        assert known.said.items() <= known.attributes.items()
        assert set(known.said) <= set(world.spoken_slots(known.kind))
        if garden_corpus.column("language")[row] == "en":
            words = set(garden_corpus.column("text")[row].replace(",", "").split())
            assert words & set(COLOURS) == set(known.said.values()) & set(COLOURS)


def test_captions_say_something(garden_corpus: Corpus) -> None:
    full = np.flatnonzero(~garden_corpus.column("phrase").equal(True)).tolist()
    assert all(truth(garden_corpus, r).said for r in full)
    assert any(len(truth(garden_corpus, r).said) < len(truth(garden_corpus, r).attributes) - 2 for r in full)


def test_phrases_say_one_or_two_things(garden_corpus: Corpus) -> None:
    short = np.flatnonzero(garden_corpus.column("phrase").equal(True)).tolist()
    assert len(short) == 48
    assert all("-p" in garden_corpus.column("id")[r] for r in short)
    assert {len(truth(garden_corpus, r).said) for r in short} == {1, 2}


def test_swap_pairs_differ_in_one_word_and_one_slot(garden_corpus: Corpus) -> None:
    ids, pairs = list(garden_corpus.column("id")), 0
    for row in garden_corpus.select("swap"):
        if not ids[row].split("-")[1].endswith("a"):
            continue
        other = ids.index(ids[row].replace("a-", "b-", 1))
        pairs += 1
        one, two = truth(garden_corpus, int(row)), truth(garden_corpus, other)
        slots = [s for s in one.attributes if one.attributes[s] != two.attributes[s]]
        assert len(slots) == 1
        assert slots[0] in COLOUR_SLOTS
        assert {**one.said, slots[0]: two.said[slots[0]]} == two.said
        words = [garden_corpus.column("text")[r].split() for r in (row, other)]
        assert len(words[0]) == len(words[1])
        assert sum(a != b for a, b in zip(*words, strict=True)) == 1
        for column in ("speaker", "mood", "language"):
            assert garden_corpus.column(column)[row] == garden_corpus.column(column)[other]
        assert garden_corpus.table[int(row)]["audio"] != garden_corpus.table[other]["audio"]
    assert pairs == SIZES["swap"] * 2


def test_swapped_parts_still_differ_where_colours_allow(garden_corpus: Corpus) -> None:
    for row in garden_corpus.select("swap"):
        a = truth(garden_corpus, int(row)).attributes
        assert a.get("wings", 1) != a.get("belly", 2)
        assert a.get("petals", 1) != a.get("centre", 2)


def test_swapped_parts_differ_with_two_colours(tmp_path: Path) -> None:
    garden = tiny_garden(TINY_WORLD.model_copy(update={"colours": ["red", "blue"]}))
    number, swap = next((i, shard) for i, shard in enumerate(garden.shards()) if shard.plan.name == "swap")
    swap.write(number, tmp_path)
    (tmp_path / "attributes" / f"{number:05d}.jsonl").rename(tmp_path / "attributes.jsonl")
    for known in Corpus(tmp_path).truths.values():
        assert known.attributes.get("wings", 1) != known.attributes.get("belly", 2)
        assert known.attributes.get("petals", 1) != known.attributes.get("centre", 2)


def test_mood_is_never_in_the_words(garden_corpus: Corpus, tmp_path: Path) -> None:
    """The same seed in a world of one mood and in a world of another: the same texts and attributes, another sound."""
    happy, sad = (
        write_corpus(
            tiny_garden(TINY_WORLD.model_copy(update={"moods": [mood]}), scenes=6, validation=1, test=1, swaps=2),
            tmp_path / mood,
        )
        for mood in ("happy", "sad")
    )
    assert set(happy.column("mood")) == {"happy"}
    for column in ("id", "text", "speaker", "label"):
        assert list(happy.column(column)) == list(sad.column(column))
    assert happy.truths == sad.truths
    for row in range(0, len(happy), 10):
        assert happy.table[row]["audio"] != sad.table[row]["audio"]
        assert happy.table[row]["image"] != sad.table[row]["image"]
    assert set(garden_corpus.column("mood")) == {"happy", "sad"}


def test_the_same_shard_twice_is_byte_identical(garden_corpus: Corpus, tmp_path: Path) -> None:
    garden = tiny_garden()
    for number in (len(garden.shards()) - 1, 1):  # in another order, with other shards left out
        garden.shards()[number].write(number, tmp_path)
        for name in (f"shards/{number:05d}.arrow", f"attributes/{number:05d}.jsonl"):
            assert (tmp_path / name).read_bytes() == (garden_corpus.folder / name).read_bytes()


def test_another_seed_is_another_corpus(garden_corpus: Corpus, tmp_path: Path) -> None:
    tiny_garden(seed=4).shards()[1].write(1, tmp_path)
    name = "attributes/00001.jsonl"
    assert (tmp_path / name).read_bytes() != (garden_corpus.folder / name).read_bytes()


def test_a_shard_that_is_there_is_left_alone(garden_corpus: Corpus) -> None:
    shard = garden_corpus.folder / "shards" / "00000.arrow"
    before = shard.stat().st_mtime_ns
    assert tiny_garden().shards()[0].write(0, garden_corpus.folder) == len(garden_corpus.select("train"))
    assert shard.stat().st_mtime_ns == before


def test_shards_cover_every_scene_once() -> None:
    settings = GardenSettings(name="garden", scenes=2 * SCENES_PER_SHARD + 1, test=5, validation=100, swaps=3)
    garden = GardenSource(settings, {}, 0)
    for plan in garden.plans():
        covered = [i for shard in garden.shards() if shard.plan == plan for i in shard.scenes]
        assert covered == list(range(plan.scenes))
    assert max(len(shard.scenes) for shard in garden.shards()) == SCENES_PER_SHARD


@pytest.mark.parametrize(("share", "which"), [(0.0, "held-out"), (1.0, "training")])
def test_no_combination_left_is_said(share: float, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sta.data.corpora.garden.corpus.MAX_DRAWS", 50)
    garden = tiny_garden(held_out=share)
    wanted = "both" if which == "held-out" else "train"
    number = next(i for i, shard in enumerate(garden.shards()) if shard.plan.name == wanted)
    with pytest.raises(RecipeError, match=rf"corpus\.held_out {share}: no {which} combination is left"):
        garden.shards()[number].write(number, tmp_path)


def test_other_engines_speak_training_recordings_only_and_change_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("ttspico")
    plain = write_corpus(tiny_garden(scenes=12, test=4, swaps=2), tmp_path / "plain")
    mixed = write_corpus(tiny_garden(scenes=12, test=4, swaps=2, other_engines=0.5), tmp_path / "mixed")
    assert mixed.truths == plain.truths
    assert [mixed.column("text")[r] for r in range(len(mixed))] == list(plain.column("text"))
    by_pico = {r for r in range(len(mixed)) if mixed.column("speaker")[r].startswith("pico-")}
    english = set(mixed.select("train", "en").tolist())
    assert by_pico < english
    assert len(by_pico) > len(english) // 5
    for row in set(range(len(mixed))) - by_pico:
        np.testing.assert_array_equal(mixed.waveform(row), plain.waveform(row))


def test_waves_are_heard(garden_corpus: Corpus) -> None:
    wave = garden_corpus.waveform(0)
    assert wave.dtype == np.float32
    assert np.abs(wave).max() > 0.1
    assert garden_corpus.picture(0).size == (32, 32)
