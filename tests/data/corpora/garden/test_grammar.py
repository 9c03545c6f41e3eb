import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sta.config import yamlfile
from sta.config.cards import LanguageCard, load_language
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.world import COLOUR_SLOTS, KINDS, SLOTS, World
from sta.errors import RecipeError

WORLD = World({slot: values for slot, (_, values) in SLOTS.items()})
LANGUAGES = [code for code in yamlfile.names("languages") if load_language(code).garden]
BIRD = {"head": "red", "belly": "blue", "wings": "yellow", "size": "small", "pose": "flying", "background": "forest"}
FLOWER = {"petals": "red", "centre": "yellow", "count": "five", "shape": "round", "grouping": "single"}


def grammar(code: str) -> Grammar:
    return Grammar(load_language(code), WORLD)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def subsets(kind: str) -> Iterator[tuple[str, ...]]:
    slots = WORLD.slots_of(kind)
    return (chosen for n in range(len(slots) + 1) for chosen in combinations(slots, n))


def spoken(g: Grammar, text: str) -> Counter[str]:
    """How often each value of the world is said; an Arabic "and" is written on its next word."""
    values = dict.fromkeys(v for _, of_slot in SLOTS.values() for v in of_slot)
    patterns = {v: "|".join(re.escape(f) for f in sorted(g.forms(v), key=len, reverse=True)) for v in values}
    return Counter({v: n for v, p in patterns.items() if (n := len(re.findall(rf"(?<!\S)(?:{p})(?![^\s,])", text)))})


def says(g: Grammar, kind: str, said: dict[str, str], words: str, seeds: int = 200) -> bool:
    """Whether some seed says exactly `words`."""
    return any(g.describe(kind, said, rng(seed)) == words for seed in range(seeds))


def test_languages_are_those_on_disk() -> None:
    assert set(LANGUAGES) >= {"en", "ar"}


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_subset_says_its_values_and_no_others(code: str, kind: str) -> None:
    g, draw = grammar(code), rng(1)
    assert g.patterns(kind) >= 3
    for slots in subsets(kind):
        said = {slot: str(draw.choice(SLOTS[slot][1])) for slot in slots}
        for pattern in range(g.patterns(kind)):
            text = g.describe(kind, said, draw, pattern)
            assert spoken(g, text) == Counter(said.values()), (said, text)
            assert text == " ".join(text.split())
            assert not set(text) & set("{}[]")


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_of_every_slot_can_be_said(code: str, kind: str) -> None:
    g = grammar(code)
    for slot in WORLD.slots_of(kind):
        for pattern in range(g.patterns(kind)):
            texts = [g.describe(kind, {slot: value}, rng(), pattern) for value in SLOTS[slot][1]]
            assert len(set(texts)) == len(texts)
            assert [spoken(g, t) for t in texts] == [Counter([v]) for v in SLOTS[slot][1]]


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_swapped_colours_change_only_their_words(code: str, kind: str) -> None:
    g = grammar(code)
    first, second = [slot for slot in COLOUR_SLOTS if kind in SLOTS[slot][0]][:2]
    scene = {slot: SLOTS[slot][1][0] for slot in WORLD.slots_of(kind)} | {first: "orange", second: "blue"}
    swapped = {**scene, first: "blue", second: "orange"}
    words = {word for colour in ("orange", "blue") for form in g.forms(colour) for word in form.split()}
    for seed in range(30):
        one, other = (re.findall(r"[^\s,]+", g.describe(kind, s, rng(seed))) for s in (scene, swapped))
        assert len(one) == len(other)
        changed = {word for pair in zip(one, other, strict=True) if pair[0] != pair[1] for word in pair}
        assert changed
        assert changed <= words


@pytest.mark.parametrize("code", LANGUAGES)
def test_seeds_reach_every_pattern_and_several_orders(code: str) -> None:
    g = grammar(code)
    for kind, said, least in (("bird", BIRD, 12), ("flower", FLOWER, 6)):
        drawn = {g.describe(kind, said, rng(seed)) for seed in range(200)}
        fixed = {g.describe(kind, said, rng(seed), p) for seed in range(200) for p in range(g.patterns(kind))}
        assert drawn <= fixed
        assert len(drawn) >= least
    assert g.describe("bird", BIRD, rng(5)) == g.describe("bird", dict(reversed(BIRD.items())), rng(5))


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("bird", BIRD, "a small flying bird with a red head, a blue belly and yellow wings, in the forest"),
        ("bird", BIRD, "in the forest there is a small flying bird with yellow wings, a red head and a blue belly"),
        ("bird", BIRD, "the small flying bird in the forest has a blue belly, a red head and yellow wings"),
        ("bird", BIRD, "a small flying bird in the forest, its head red, its belly blue and its wings yellow"),
        ("bird", {"head": "orange", "beak": "hooked"}, "a bird with an orange head and a hooked beak"),
        ("bird", {"wings": "orange"}, "there is a bird with orange wings"),
        ("bird", {}, "a bird"),
        ("flower", FLOWER, "a single flower with five round red petals and a yellow centre"),
        ("flower", FLOWER | {"grouping": "cluster"}, "there is a cluster of flowers with five round red petals"),
        ("flower", {"count": "twelve", "background": "meadow"}, "a flower growing in the meadow with twelve petals"),
        ("flower", {"centre": "orange", "petals": "pink"}, "an orange centre and pink petals on a flower"),
    ],
)
def test_golden_english(kind: str, said: dict[str, str], expected: str) -> None:
    if said.get("grouping") == "cluster":
        said = {slot: value for slot, value in said.items() if slot != "centre"}
    assert says(grammar("en"), kind, said, expected)


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        # masculine singular, masculine dual and the nominative of predicates
        ("bird", BIRD, "طَائِرٌ صَغِيرٌ مُحَلِّقٌ فِي الْغَابَةِ رَأْسُهُ أَحْمَرُ وَبَطْنُهُ أَزْرَقُ وَجَنَاحَاهُ أَصْفَرَانِ"),
        # definite subject, its adjectives definite with it
        ("bird", {"size": "large", "pose": "perched", "wings": "orange"}, "الطَّائِرُ الْكَبِيرُ الْجَاثِمُ جَنَاحَاهُ بُرْتُقَالِيَّانِ"),
        # genitive after "possessor of": diptotes in -a, relative adjectives in -in, the dual in -ayni
        ("bird", {"head": "black", "belly": "pink", "wings": "white"}, "طَائِرٌ ذُو رَأْسٍ أَسْوَدَ وَبَطْنٍ وَرْدِيٍّ وَجَنَاحَيْنِ أَبْيَضَيْنِ"),
        ("bird", {"beak": "long", "background": "desert"}, "فِي الصَّحْرَاءِ طَائِرٌ لَهُ مِنْقَارٌ طَوِيلٌ"),
        # a plural of things agrees like a feminine singular; the number follows its noun
        ("flower", FLOWER, "زَهْرَةٌ مُفْرَدَةٌ بَتَلَاتُهَا الْخَمْسُ حَمْرَاءُ مُسْتَدِيرَةٌ وَوَسَطُهَا أَصْفَرُ"),
        ("flower", {"petals": "blue", "count": "twelve"}, "زَهْرَةٌ ذَاتُ بَتَلَاتٍ اِثْنَتَيْ عَشْرَةَ زَرْقَاءَ"),
        ("flower", {"petals": "brown", "shape": "pointed"}, "زَهْرَةٌ ذَاتُ بَتَلَاتٍ بُنِّيَّةٍ مُدَبَّبَةٍ"),
        ("flower", {"count": "eight"}, "زَهْرَةٌ بَتَلَاتُهَا ثَمَانٍ"),
        ("flower", {"count": "eight", "petals": "white"}, "زَهْرَةٌ بَتَلَاتُهَا الثَّمَانِي بَيْضَاءُ"),
        ("flower", {"grouping": "cluster", "centre": "green"}, "الْأَزْهَارُ الْمُتَجَمِّعَةُ وَسَطُهَا أَخْضَرُ"),
        ("flower", {"centre": "purple", "background": "meadow"}, "زَهْرَةٌ ذَاتُ وَسَطٍ بَنَفْسَجِيٍّ فِي الْمَرْجِ"),
    ],
)  # fmt: skip
def test_golden_arabic(kind: str, said: dict[str, str], expected: str) -> None:
    assert says(grammar("ar"), kind, said, expected)


def test_arabic_puts_shadda_before_its_vowel() -> None:
    """espeak drops the vowel otherwise: muhallqun for muhalliqun."""
    text = load_language("ar").model_dump_json()
    assert "\u0651" in text
    assert not re.search("[\u064b-\u0650]\u0651", text)


def edited(code: str, edit: Callable[[dict[str, Any]], object]) -> LanguageCard:
    data = load_language(code).model_dump(mode="json")
    edit(data["garden"])
    return LanguageCard.model_validate(data)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda g: g["lexicon"]["red"].pop("dual"), ["'garden.lexicon.red' has no form 'dual'", "جَنَاحَاهُ", "m_gen"]),
        (lambda g: g["lexicon"].pop("blue"), ["'garden.lexicon.blue' is missing", "slot 'head'"]),
        (lambda g: g["lexicon"].update(redd="x"), ["'garden.lexicon.redd'; did you mean 'red'?", "twelve"]),
        (lambda g: g["kinds"].pop("flower"), ["'garden.kinds.flower' is missing"]),
        (lambda g: g["kinds"].update(brid=g["kinds"]["bird"]), ["'garden.kinds.brid'; did you mean 'bird'?"]),
        (
            lambda g: g["kinds"]["bird"]["patterns"][0]["details"][0].__setitem__(0, "{haed.m}"),
            ["'garden.kinds.bird.patterns.0.details.0'", "'{haed.m}'", "unknown slot 'haed'; did you mean 'head'?"],
        ),
        (
            lambda g: g["kinds"]["bird"]["patterns"][1]["details"].pop(3),
            ["'garden.kinds.bird.patterns.1' never says slot 'beak'"],
        ),
        (
            lambda g: g["kinds"]["bird"]["patterns"][1]["details"].append(["{head.m}"]),
            ["says slot 'head' twice, in garden.kinds.bird.patterns.1.details.0 and"],
        ),
        (
            lambda g: g["kinds"]["bird"]["patterns"][0].update(sentence=["{size.m}[ {pose.m}][ {background}]"]),
            ["'garden.kinds.bird.patterns.0.sentence' has no template that says just nothing of a bird"],
        ),
        (
            lambda g: g["kinds"]["bird"]["patterns"][0].update(sentence=["[{size.m}][ {pose.m}][ {background}]"]),
            ["'garden.kinds.bird.patterns.0.sentence' has no place for its {details}"],
        ),
        (
            lambda g: g["kinds"]["bird"]["patterns"][1]["details"][0].__setitem__(0, "{head}"),
            ["'garden.lexicon.red' has several forms, so that {head} must name one"],
        ),
    ],
)
def test_mistake_in_a_grammar_is_named(edit: Callable[[dict[str, Any]], object], said: list[str]) -> None:
    card = edited("ar", edit)
    with pytest.raises(RecipeError) as error:
        Grammar(card, WORLD)
    message = str(error.value)
    assert message.startswith("language card 'ar': ")
    assert all(part in message for part in said), message


def test_narrow_world_needs_only_its_words() -> None:
    card = edited("ar", lambda g: [g["lexicon"].pop(v) for v in ("pink", "eight", "desert")])
    gone = ("pink", "eight", "desert")
    narrow = World({slot: tuple(v for v in values if v not in gone) for slot, values in WORLD.slots.items()})
    g = Grammar(card, narrow)
    with pytest.raises(RecipeError, match=r"garden\.lexicon\.(pink|eight|desert)\' is missing"):
        g.check(WORLD)
    with pytest.raises(ValueError, match="cannot say 'pink' of slot 'head'"):
        g.describe("bird", {"head": "pink"}, rng())


def test_language_without_a_grammar() -> None:
    card = load_language("en").model_copy(update={"garden": None})
    with pytest.raises(RecipeError, match=r"here\.yaml: key 'garden' is missing"):
        Grammar(card, WORLD, source="here.yaml")


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("fish", {}, "cannot say kind 'fish', only bird, flower"),
        ("bird", {"petals": "red"}, "a bird has no slot 'petals', only head, belly"),
        ("bird", {"head": "small"}, "cannot say 'small' of slot 'head'"),
    ],
)
def test_unsayable_scene(kind: str, said: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grammar("en").describe(kind, said, rng())
