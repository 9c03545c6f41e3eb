"""The tokenizer without a codebook: it starts as principal components, and is a tokenizer as the other one is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.config.recipe import load_recipe
from sta.distributed.sharding import BatchShard, sharded_step
from sta.errors import RecipeError
from sta.inference.pipeline import SpeechToImagePipeline
from sta.models.autoencoder import LIMIT, Autoencoder, tokenizer_class
from sta.models.decoders.base import PictureGrid, TokenSpace
from sta.models.loading import load_network
from sta.models.vq import VQTokenizer
from sta.training.tasks.decoder import DecoderTask
from sta.training.tasks.tokenizer import TokenizerTask
from tests.conftest import scatter
from tests.release_fixtures import tiny_decoder, tiny_pipeline, wave
from tests.training.facts import FACTS


def autoencoder(factor: int = 4, code_width: int = 6) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(16, code_width=code_width, width=8, factor=factor)


def pictures(count: int = 40, size: int = 16) -> Tensor:
    """Coloured squares on white, [n, 3, H, W]."""
    generator = torch.Generator().manual_seed(0)
    made = torch.ones(count, 3, size, size)
    for picture in made:
        left, top, colour = (torch.rand(k, generator=generator) for k in (1, 1, 3))
        x, y = int(left * size / 2), int(top * size / 2)
        picture[:, y : y + size // 2, x : x + size // 2] = colour[:, None, None] * 2 - 1
    return made


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shapes(factor: int) -> None:
    made = autoencoder(factor).eval()
    assert made.side == 16 // factor
    latents = made.latents(pictures(3))
    assert latents.shape == (3, 6, made.side, made.side)
    assert made.decode_latents(latents).shape == (3, 3, 16, 16)
    assert made(pictures(3))[0].shape == (3, 3, 16, 16)


def test_it_starts_as_the_best_linear_code() -> None:
    made, given = autoencoder(), pictures()
    made.start_from(given)
    with torch.no_grad():
        latents = made.latents(given)
        lost = (made.decode_latents(latents) - given).square().mean()
    flat = latents.permute(1, 0, 2, 3).flatten(1)
    squares = F.unfold(given, 4, stride=4).transpose(1, 2).flatten(0, 1)
    singular = torch.linalg.svdvals(squares - squares.mean(0))
    variances = singular[:6].flip(0) / singular[:6].mean()  # as the components' deviations are, 1 in the mean
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], variances.diag(), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.mean(1), torch.zeros(6), atol=1e-3, rtol=0)
    left_out = singular[6:].square().sum() / squares.numel()
    assert 0.8 * left_out < lost <= 1.001 * left_out  # what is clamped to [-1, 1] comes nearer


def test_pictures_of_one_colour_are_no_fault() -> None:
    made = autoencoder()
    made.start_from(torch.ones(4, 3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(
            made.decode_latents(made.latents(torch.ones(1, 3, 16, 16))), torch.ones(1, 3, 16, 16)
        )


def test_gradient_reaches_every_parameter() -> None:
    made = scatter(autoencoder(), by=0.2).train()
    drawn, quantized = made(pictures(4))  # type: ignore[operator]
    (drawn.square().mean() + quantized.commit).backward()
    learnt = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert not [name for name, p in learnt.items() if p.grad is None or p.grad.abs().max() == 0]
    assert {name.partition(".")[0] for name in learnt} == {"encoder", "decoder"}


def test_latents_far_from_zero_cost() -> None:
    made = autoencoder()
    made.start_from(pictures())
    assert made(pictures())[1].commit < 0.05
    with torch.no_grad():
        made.patches.weight.mul_(10 * LIMIT)
    assert made(pictures())[1].commit > 10


def test_two_shards_draw_the_noise_that_one_draws() -> None:
    made, given = autoencoder(), pictures(4)
    made.start_from(given)
    with torch.no_grad():
        with sharded_step(BatchShard(), 4, seed=1):
            whole = made(given)[0]
        for rank in range(2):
            shard = BatchShard(rank, 2)
            with sharded_step(shard, 4, seed=1):
                part = made(given[torch.from_numpy(shard.of(torch.arange(4).numpy()))])[0]
            torch.testing.assert_close(part, whole[torch.from_numpy(shard.of(torch.arange(4).numpy()))])
    assert not whole.allclose(made.eval().decode_latents(made.latents(given)), atol=1e-3), "there is noise"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    made = scatter(autoencoder(), by=0.2).eval()
    made.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_network(Autoencoder, tmp_path)
    with torch.no_grad():
        assert loaded.latents(pictures(2)).equal(made.latents(pictures(2)))  # type: ignore[operator]


def test_it_has_no_codes() -> None:
    assert tokenizer_class(0) is Autoencoder
    assert tokenizer_class(8) is VQTokenizer
    with pytest.raises(NotImplementedError, match="has no codes"):
        autoencoder().encode_as(pictures(1), "codes")


def test_a_release_keeps_it(tmp_path: Path) -> None:
    pipe, tokenizer = tiny_pipeline("latent-diffusion"), scatter(autoencoder(code_width=4), by=0.2).eval()
    decoder, _ = tiny_decoder("latent-diffusion", PictureGrid(4, 0, 4), TokenSpace(3, 4, 8))
    made = SpeechToImagePipeline(decoder.eval(), tokenizer, pipe.scheduler, token_space="0")  # type: ignore[arg-type]
    made.add_pack(pipe.languages["en"])
    made.save_pretrained(tmp_path)
    loaded = SpeechToImagePipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.tokenizer, Autoencoder)
    drawn, again = (
        p(wave(), generator=torch.Generator().manual_seed(0), output_type="pt").images for p in (made, loaded)
    )
    torch.testing.assert_close(drawn, again, atol=1e-5, rtol=0)


def test_the_stages_can_be_planned_with_it() -> None:
    recipe = load_recipe("garden-tiny", ["tokenizer.codes=0", "decoder.kind=latent-diffusion"])
    drawn = DecoderTask.example_batch(recipe, FACTS, "decoder", 4, 1.0).x0
    assert drawn is not None
    assert drawn.shape == (4, 8, 8, 8)
    pixels = TokenizerTask.example_batch(recipe, FACTS, "tokenizer", 2, 1.0)
    losses = TokenizerTask.build_network(recipe, FACTS, "tokenizer")(pixels)
    assert losses.keys() == {"l1", "mse", "commit"}


def test_codes_are_drawn_where_there_are_codes() -> None:
    with pytest.raises(RecipeError, match=r"decoder.kind vq-diffusion draws codes: give tokenizer.codes a number"):
        load_recipe("garden-tiny", ["tokenizer.codes=0"])
    unquantised = "stages.tokenizer.unquantised=0"
    load_recipe("garden-tiny", ["tokenizer.codes=0", "decoder.kind=latent-diffusion", unquantised])
    with pytest.raises(RecipeError, match="give stages.tokenizer.unquantised a share"):
        load_recipe("garden-tiny", ["decoder.kind=latent-diffusion", unquantised])
