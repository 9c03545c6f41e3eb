"""The style as a condition: what it changes, what no style is, and how guidance and training drop it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta.cli.main import main
from sta.config.recipe import Sampling, load_recipe
from sta.distributed.sharding import BatchShard, sharded_step
from sta.errors import ArgumentError
from sta.inference.pipeline import SpeechToImagePipeline, repeat_condition
from sta.models.bottleneck import SpeechBottleneck, SpeechCondition
from sta.models.decoders.base import Decoder, PictureGrid, TokenSpace, find_decoder
from sta.training.tasks.decoder import DecoderBatch, _Denoising, style_numbers
from tests.conftest import scatter, tiny_encoder
from tests.release_fixtures import tiny_decoder, tiny_pipeline, wave, write_wave

STYLES = ("flat", "line", "round")
STYLED = ("vq-diffusion", "latent-diffusion")
GRID, SPACE = PictureGrid(4, 8, 3), TokenSpace(2, 3, 3, STYLES)
ANY = len(STYLES)


def styled(kind: str) -> Decoder:
    torch.manual_seed(0)
    return scatter(tiny_decoder(kind, GRID, SPACE, draft=0)[0], by=0.2).eval()  # type: ignore[return-value]


def given(made: Decoder, batch: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = made.start(batch, generator, torch.device("cpu"))
    tokens, embedding = (torch.randn(batch, *shape, generator=generator) for shape in ((2, 3), (3,)))
    return x, torch.linspace(0.2, 1, batch), tokens, embedding


@pytest.mark.parametrize("kind", STYLED)
def test_each_style_gives_another_prediction(kind: str) -> None:
    made = styled(kind)
    x, t, tokens, embedding = (part[:1].expand(ANY + 1, *part.shape[1:]) for part in given(made))
    found = made(x, t, tokens, embedding, style=torch.arange(ANY + 1))
    assert all(not found[a].allclose(found[b], atol=1e-3) for a in range(ANY + 1) for b in range(a))


@pytest.mark.parametrize("kind", STYLED)
def test_no_style_is_any_style(kind: str) -> None:
    made = styled(kind)
    assert made(*given(made)).equal(made(*given(made), style=torch.full((4,), ANY)))


@pytest.mark.parametrize("kind", STYLED)
def test_a_dropped_condition_drops_its_style(kind: str) -> None:
    made, drop = styled(kind), torch.tensor([True, False, True, False])
    one, other = (made(*given(made), drop, style=torch.full((4,), style)) for style in (0, 1))
    assert one[drop].equal(other[drop])
    assert not one[~drop].allclose(other[~drop], atol=1e-3)


@pytest.mark.parametrize("kind", STYLED)
def test_guidance_starts_from_neither_speech_nor_style(kind: str) -> None:
    made = styled(kind)
    x, _, tokens, embedding = given(made)
    condition, t = SpeechCondition(tokens, embedding, torch.zeros(4), torch.tensor([0, 1, 2, ANY])), torch.tensor(0.5)
    nothing = made(x, t.expand(4), tokens, embedding, torch.ones(4, dtype=torch.bool))
    asked = made(x, t.expand(4), tokens, embedding, style=condition.style)
    torch.testing.assert_close(
        made.predict(x, t, condition, 3.0), made.guide(asked, nothing, 3.0), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(made.predict(x, t, condition, 1.0), asked.float())


@pytest.mark.parametrize("kind", STYLED)
def test_the_styles_names_are_saved(kind: str, tmp_path: Path) -> None:
    made = styled(kind)
    made.save_pretrained(tmp_path)
    loaded: Any = type(made).from_pretrained(tmp_path)
    assert loaded.styles == STYLES
    style = torch.tensor([0, 1, 2, 3])
    assert loaded.eval()(*given(made), style=style).equal(made(*given(made), style=style))


@pytest.mark.parametrize("kind", STYLED)
def test_without_styles_there_are_no_weights_of_them(kind: str) -> None:
    plain = tiny_decoder(kind, GRID, replace(SPACE, styles=()))[0]
    assert plain.styles == ()
    made = find_decoder(kind)
    unasked = made.build(made.Settings.model_validate({"kind": kind, "styles": False}), GRID, SPACE)
    for each in (plain, unasked):
        assert not [name for name in each.state_dict() if "style" in name]


def test_the_published_network_knows_no_style() -> None:
    assert tiny_decoder("vq-diffusion-published", GRID, SPACE)[0].styles == ()


def test_a_condition_keeps_its_style_where_it_is_cut_or_repeated() -> None:
    whole = SpeechCondition(torch.zeros(3, 2, 3), torch.zeros(3, 3), torch.arange(3), torch.tensor([2, 0, 1]))
    for part, expected in ((whole[1:], [0, 1]), (repeat_condition(whole, 2), [2, 2, 0, 0, 1, 1])):
        assert part.style is not None
        assert part.style.tolist() == expected
    assert repeat_condition(replace(whole, style=None), 2).style is None


# ---- training ---------------------------------------------------------------------------------------------------


def denoising(dropout: float) -> _Denoising:
    encoder = tiny_encoder({"en": 5})
    torch.manual_seed(0)
    made, settings = tiny_decoder("latent-diffusion", GRID, SPACE, layers=1, draft=0)
    scatter(made, by=0.2)
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    overrides = [f"stages.decoder.style_dropout={dropout}", "stages.decoder.losses.caption=0"]
    stage = load_recipe("garden-mini", overrides).stages.decoder
    return _Denoising(made.objective(settings, {}), {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03)


def pictures(size: int, styles: list[int] | None) -> DecoderBatch:
    generator = torch.Generator().manual_seed(0)
    frames, mask = torch.randn(size, 6, 16, generator=generator), torch.ones(size, 6, dtype=torch.bool)
    x0 = torch.randn(size, 3, 4, 4, generator=generator)
    style = None if styles is None else torch.tensor(styles)
    return DecoderBatch(
        0, torch.zeros(size, dtype=torch.long), torch.arange(size), torch.arange(0), torch.arange(0), frames, mask,
        style=style, x0=x0,
    )  # fmt: skip


def flow(module: _Denoising, batch: DecoderBatch, shard: BatchShard = BatchShard(), size: int = 8) -> Tensor:  # noqa: B008
    with sharded_step(shard, size, seed=3):
        return module(batch)["flow"].detach()


def test_a_share_of_the_styles_is_hidden() -> None:
    module = denoising(0.3)
    with sharded_step(BatchShard(), 4000, seed=1):
        found = module._style(pictures(4000, [1] * 4000))
    assert found is not None
    assert set(found.tolist()) == {1, ANY}
    assert abs((found == ANY).float().mean() - 0.3) < 0.03  # four standard deviations
    assert module._style(pictures(4, None)) is None


def test_training_sees_the_style_and_hides_it() -> None:
    seen, hidden = denoising(0.0), denoising(1.0)
    assert not flow(seen, pictures(8, [0] * 8)).allclose(flow(seen, pictures(8, [1] * 8)), atol=1e-4)
    assert flow(hidden, pictures(8, [0] * 8)).equal(flow(hidden, pictures(8, [1] * 8)))


def test_two_shards_hide_the_styles_that_one_hides() -> None:
    module, styles = denoising(0.5), [0, 1, 2, 0, 1, 2, 0, 1]
    with sharded_step(BatchShard(), 8, seed=3):
        whole = module._style(pictures(8, styles))
    parts = []
    for rank in range(2):
        shard = BatchShard(rank, 2)
        with sharded_step(shard, 8, seed=3):
            parts.append(module._style(pictures(4, shard.of(np.array(styles)).tolist())))
    assert whole is not None
    numbers = np.concatenate([BatchShard(rank, 2).of(np.arange(8)) for rank in range(2)])
    assert torch.cat(parts)[np.argsort(numbers)].equal(whole)  # type: ignore[arg-type]
    assert 0 < (whole == ANY).sum() < 8


def test_an_objective_learns_to_tell_styles_apart() -> None:
    """One picture a style, no speech: only the style says which is asked for."""
    torch.manual_seed(0)
    made, settings = tiny_decoder("latent-diffusion", GRID, SPACE, layers=1, draft=0)
    loss, x0, style = made.objective(settings, {}), torch.randn(3, 3, 4, 4), torch.arange(3).repeat(16)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    condition = SpeechCondition(torch.zeros(48, 2, 3), torch.zeros(48, 3), torch.zeros(48), style)
    for _ in range(200):
        optimizer.zero_grad()
        loss(x0[style], condition, torch.zeros(48, dtype=torch.bool), None)["flow"].backward()
        optimizer.step()
    start = made.start(3, torch.Generator().manual_seed(0), torch.device("cpu"))
    drawn = made.eval().sample(made.build_scheduler(settings, Sampling()), condition[:3], start, 10, 1.0)
    apart = torch.cdist(drawn.flatten(1), x0.flatten(1))
    assert apart.argmin(1).tolist() == [0, 1, 2]


def test_styles_that_training_never_had_have_no_number_of_their_own() -> None:
    assert style_numbers(["line", None, "flat", "other"], STYLES).tolist() == [1, ANY, 0, ANY]


# ---- drawing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> SpeechToImagePipeline:
    return tiny_pipeline("latent-diffusion", STYLES)


def draw(pipe: SpeechToImagePipeline, audio: Any, **options: Any) -> np.ndarray:
    pictures: np.ndarray = pipe(audio, generator=torch.Generator().manual_seed(0), output_type="np", **options).images
    return pictures


def test_a_style_is_asked_for_by_name(pipe: SpeechToImagePipeline, tmp_path: Path) -> None:
    plain, flat, line = (draw(pipe, wave(), style=style) for style in (None, "flat", "line"))
    assert np.array_equal(plain, draw(pipe, wave()))
    assert not np.allclose(plain, flat, atol=1e-3)
    assert not np.allclose(flat, line, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        draw(SpeechToImagePipeline.from_pretrained(tmp_path), wave(), style="flat"), flat, atol=1e-5
    )


def test_each_recording_may_have_its_own_style(pipe: SpeechToImagePipeline) -> None:
    tokens = pipe([wave(), wave()], style=["line", None], num_images_per_prompt=2, num_inference_steps=1).tokens
    assert tokens.style is not None
    assert tokens.style[:2].tolist() == [1, 1]
    assert set(tokens.style[2:].tolist()) <= set(range(ANY))


def test_without_a_style_each_picture_has_one_by_chance_and_the_same_for_the_same_seed(
    pipe: SpeechToImagePipeline,
) -> None:
    def styles(seed: int) -> list[int]:
        generators = [torch.Generator().manual_seed(seed + number) for number in range(12)]
        tokens = pipe(wave(), num_images_per_prompt=12, generator=generators, num_inference_steps=1).tokens
        assert tokens.style is not None
        return tokens.style.tolist()  # type: ignore[no-any-return]

    assert styles(0) == styles(0)
    assert set(styles(0)) == set(range(ANY))


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("oil", "style 'oil' is not one of flat, line, round"), (["flat", 3], "style 3 is not one of"),
        (["flat", "line"], "2 styles were given for 1 recordings; give one, or as many"),
    ],
)  # fmt: skip
def test_a_style_that_is_not_known(pipe: SpeechToImagePipeline, style: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pipe(wave(), style=style)


@pytest.mark.parametrize("kind", ["vq-diffusion", "vq-diffusion-published"])
def test_a_release_without_styles_takes_none(kind: str) -> None:
    with pytest.raises(ArgumentError, match="style 'flat' cannot be asked for: this release knows no styles"):
        tiny_pipeline(kind)(wave(), style="flat")


def test_the_command_line_asks_for_a_style(
    pipe: SpeechToImagePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.save_pretrained(tmp_path / "release")
    write_wave(tmp_path / "said.wav", wave())
    call = ["draw", str(tmp_path / "said.wav"), "--language", "en", "--weights", str(tmp_path / "release"), "--out"]
    drawn = []
    for style in ("flat", "line"):
        assert main([*call, str(tmp_path / style), "--style", style]) == 0
        drawn.append((tmp_path / style / "said.png").read_bytes())
    assert drawn[0] != drawn[1]
    assert main([*call, str(tmp_path), "--style", "oil"]) == 2
    assert "style 'oil' is not one of flat, line, round" in capsys.readouterr().err
