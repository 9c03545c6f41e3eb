"""Language packs, as they lie in a release: what the pipeline needs to encode one language."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from sta.config.cards import LanguageCard, released_language
from sta.data.phonemes import as_phonemes
from sta.data.text import Pieces, normalise
from sta.errors import CorpusError, WeightsError, first_line
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import SpeechEncoder
from sta.models.loading import load_network

Networks = tuple[SpeechEncoder, SpeechBottleneck]


@dataclass
class LanguagePack:
    """What the pipeline needs to encode one language: its encoder, which languages may share, and its text side.

    Attributes:
        group: name of encoder and bottleneck; packs of one group share them, and only these.
    """

    card: LanguageCard
    pieces: Pieces
    group: str
    encoder: SpeechEncoder
    bottleneck: SpeechBottleneck

    def spell(self, texts: Sequence[str]) -> list[list[int]]:
        """Return written captions as pieces of the encoder's CTC head, of their phonemes where it reads these."""
        spelled = [normalise(text, self.card.normaliser) for text in texts]
        if self.card.code in self.encoder.config.phonemes:
            spelled = as_phonemes(spelled, self.card)
        return [self.encoder.offset_pieces(self.pieces.encode(text), self.card.code) for text in spelled]


def write_packs(folder: Path, packs: Mapping[str, LanguagePack], token_space: str) -> None:
    """Write each language's `<code>/`, and the networks of each group once, to a folder that is not there yet.

    Published models that are frozen lie in files of their own, `frozen-*.safetensors`, one for all groups that have it.

    Args:
        packs: by code; those of one group have the same networks.
        token_space: fingerprint of the decoder that reads their tokens.
    """
    folder.mkdir()  # also of no languages, so that it takes the place of another release's
    for code, pack in packs.items():
        (folder / code).mkdir()
        index = {"code": code, "encoder": pack.group, "token_space": token_space}
        (folder / code / "language.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / code / "card.json").write_text(pack.card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / code / "pieces.model").write_bytes(pack.pieces.serialized())
    for group, pack in {pack.group: pack for pack in packs.values()}.items():
        pack.encoder.save(folder / group / "encoder", folder)
        pack.bottleneck.save_pretrained(folder / group / "bottleneck")


def read_pack(folder: Path, token_space: str, loaded: dict[Path, Networks] | None = None) -> LanguagePack:
    """Read a language pack from its folder.

    Args:
        token_space: fingerprint of the decoder that is to read its tokens.
        loaded: networks of other packs by folder; they are not loaded again, and these are added.

    Raises:
        WeightsError: a file is missing or broken, or the language speaks another token space.
    """
    loaded = {} if loaded is None else loaded
    try:
        index = json.loads((folder / "language.json").read_text())
        card = released_language((folder / "card.json").read_text(encoding="utf-8"))
        shared = folder.parent / index["encoder"]
        if shared not in loaded:
            encoder = load_network(SpeechEncoder, shared / "encoder")
            loaded[shared] = encoder, load_network(SpeechBottleneck, shared / "bottleneck")
        encoder, bottleneck = loaded[shared]
        pieces = Pieces.load(folder / "pieces.model")
        spoken = index["token_space"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CorpusError) as error:
        raise WeightsError(
            f"{folder}: not a whole language pack ({first_line(error)}); copy the release again"
        ) from error
    if spoken != token_space:
        raise WeightsError(
            f"{folder}: speaks token space {spoken}, this decoder reads {token_space}; "
            "use the language pack released for this decoder"
        )
    if card.code not in encoder.languages:
        raise WeightsError(
            f"{folder}: its encoder '{index['encoder']}' knows {', '.join(encoder.languages)}, not {card.code}; "
            "copy the release again"
        )
    return LanguagePack(card, pieces, index["encoder"], encoder, bottleneck)


def beside(pack: LanguagePack, others: Sequence[LanguagePack]) -> LanguagePack:
    """Return the pack as it goes with others: a group's name stands for one encoder and bottleneck."""
    for other in others:
        if _equal(pack.encoder, other.encoder) and _equal(pack.bottleneck, other.bottleneck):
            return replace(pack, group=other.group, encoder=other.encoder, bottleneck=other.bottleneck)
    taken = {other.group for other in others}
    names = (pack.group, *(f"{pack.group}-{number}" for number in range(2, len(others) + 2)))
    return replace(pack, group=next(name for name in names if name not in taken))


def _equal(one: ModelMixin, other: ModelMixin) -> bool:
    """Return whether two networks are built alike and have the same weights."""
    if one is other:
        return True
    if _built(one) != _built(other):
        return False
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x.cpu(), y.cpu()) for x, y in pairs)


def _built(network: ModelMixin) -> dict[str, Any]:
    """Return how a network is built, without where it came from."""
    return {name: value for name, value in dict(network.config).items() if not name.startswith("_")}
