"""Tiny networks in the formats of timm and transformers, and the card of a teacher that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sta.config.cards import TrainedClipCard

WORDS = ("<s>", "<pad>", "<unk>", "query", ":", "red", "blue", "dog", "cat", "chien", "chat", "a")
IMAGE, TEXT = "timm/test_efficientnet.r160_in1k", "small/bert"


def write_towers(folder: Path) -> Path:
    """Write both networks below a folder, by their names on the Hub."""
    torch.manual_seed(0)
    image, text = folder / IMAGE, folder / TEXT
    image.mkdir(parents=True)
    seeing = timm.create_model("test_efficientnet")
    save_file(seeing.state_dict(), image / "model.safetensors")
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(
        BertConfig(vocab_size=len(WORDS), pad_token_id=1, **sizes), add_pooling_layer=False
    ).half().save_pretrained(text)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(text)
    return folder


def towers_card(**changes: Any) -> TrainedClipCard:
    """Return the card of a teacher of both networks, frozen, with heads of eight numbers."""
    return TrainedClipCard.model_validate(
        {
            "name": "of-parts", "kind": "trained-clip", "embedding_width": 8, "image_size": 32,
            "text_languages": ["en"], "licence": "MIT", "source": "here", "frozen": ["image", "text"],
            "head": {"hidden": 12, "dropout": 0.1}, "image_stages": 2, "text_prefix": "query: ",
            "config": {
                "embed_dim": 8,
                "vision_cfg": {"timm_model_name": IMAGE, "image_size": 32, "timm_pool": "avg"},
                "text_cfg": {"hf_model_name": TEXT, "hf_pooler_type": "mean_pooler", "context_length": 16},
            },
        } | changes
    )  # fmt: skip
