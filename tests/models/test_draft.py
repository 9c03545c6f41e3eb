"""The draft: what it reads, what it learns, and how a decoder starts from it."""

from __future__ import annotations

import pytest
import torch

from sta.config.recipe import Sampling, load_recipe
from sta.errors import RecipeError
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.latent_diffusion import FlowMatching, LatentDecoder
from sta.models.decoders.vq_diffusion import CodeDecoder
from sta.models.draft import AttentionDraft, DirectDraft, detail
from sta.models.patchify import patchify, unpatchify
from tests.conftest import scatter

SIDE, D, K, C, E = 4, 3, 5, 6, 7
SIZES = {"tokens": K, "token_width": C, "embedding_width": E, "width": 16, "layers": 1, "heads": 2, "draft": 2}


def latent_decoder() -> LatentDecoder:
    torch.manual_seed(0)
    return scatter(LatentDecoder(SIDE, D, **SIZES), by=0.2).eval()  # type: ignore[arg-type, return-value]


def code_decoder() -> CodeDecoder:
    torch.manual_seed(0)
    return scatter(CodeDecoder(SIDE, 9, channels=D, **SIZES), by=0.2).eval()  # type: ignore[arg-type, return-value]


def given(made: CodeDecoder | LatentDecoder, batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    start = made.start(batch, generator, torch.device("cpu"))
    tokens, embedding = torch.randn(batch, K, C, generator=generator), torch.randn(batch, E, generator=generator)
    return start, torch.linspace(0.2, 1, batch), tokens, embedding


def test_each_colour_is_drafted_where_it_belongs() -> None:
    """Two tokens say two values; the left half of the picture shows the first, the right half the second."""
    torch.manual_seed(0)
    draft = AttentionDraft(SIDE, 1, 2, tokens=2, token_width=4, width=32, layers=2, heads=2)
    optimizer = torch.optim.Adam(draft.parameters(), 3e-3)

    def pictures(values: torch.Tensor) -> torch.Tensor:
        return values.float().sub(1.5).repeat_interleave(2, 1)[:, None, None].expand(-1, 1, SIDE, SIDE)

    for _ in range(300):
        values = torch.randint(4, (32, 2))
        loss = draft.loss(draft(torch.nn.functional.one_hot(values, 4).float()), pictures(values))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    values = torch.tensor([[0, 3], [3, 0]])
    folded = draft.out(draft(torch.nn.functional.one_hot(values, 4).float()))
    shown = unpatchify(folded, SIDE, 2).view(2, SIDE, SIDE)
    torch.testing.assert_close(shown, pictures(values)[:, 0], atol=0.5, rtol=0)


def test_the_loss_is_of_the_latents_in_their_places() -> None:
    draft = AttentionDraft(SIDE, D, 2, K, C, width=12, layers=1, heads=2)
    draft.out = torch.nn.Identity()  # type: ignore[assignment]
    latents = torch.randn(2, D, SIDE, SIDE)
    assert draft.loss(patchify(latents.flatten(2).transpose(1, 2), SIDE, 2), latents) == 0


def test_an_even_picture_has_the_same_weight_everywhere() -> None:
    torch.testing.assert_close(detail(torch.full((2, D, SIDE, SIDE), 0.7)), torch.ones(2, 1, SIDE, SIDE))


def test_an_edge_counts_for_more_than_the_ground_around_it() -> None:
    latents = torch.zeros(1, D, 8, 8)
    latents[:, :, 4:, 4:] = 1.0
    weights = detail(latents)[0, 0]
    assert float(weights.mean()) == pytest.approx(1)
    assert weights[4, 4] > 20 * weights[0, 0] > 0
    assert detail(3 * latents)[0, 0].allclose(weights, atol=1e-3), "the strength of a picture's contrast is no matter"


def test_an_error_costs_more_where_there_is_detail() -> None:
    draft = AttentionDraft(SIDE, D, 2, K, C, width=12, layers=1, heads=2)
    draft.out = torch.nn.Identity()  # type: ignore[assignment]
    latents = torch.zeros(1, D, SIDE, SIDE)
    latents[:, :, 0, 0] = 1.0

    def cost(row: int, column: int) -> float:
        guess = latents.clone()
        guess[:, :, row, column] += 0.5
        return float(draft.loss(patchify(guess.flatten(2).transpose(1, 2), SIDE, 2), latents))

    assert cost(0, 0) > 3 * cost(3, 3) > 0


def spoken(tokens: torch.Tensor) -> SpeechCondition:
    return SpeechCondition(tokens, torch.zeros(len(tokens), E), torch.zeros(len(tokens)))


@pytest.mark.parametrize("make", [latent_decoder, code_decoder])
def test_a_draft_made_once_draws_what_a_draft_of_every_step_draws(make: type[LatentDecoder]) -> None:
    made = make()
    parts = given(made)
    torch.testing.assert_close(made(*parts), made(*parts, drafted=made.draft(spoken(parts[2]))))
    assert not made(*parts).allclose(made(*parts, drafted=made.draft(spoken(parts[2].flip(0)))), atol=1e-3)


@pytest.mark.parametrize("make", [latent_decoder, code_decoder])
def test_the_null_condition_knows_no_draft(make: type[LatentDecoder]) -> None:
    made = make()
    x, t, tokens, embedding = given(made)
    hidden = torch.tensor([True, True])
    assert made(x, t, tokens, embedding, hidden).equal(made(x, t, -tokens, embedding, hidden))


def test_the_gradient_of_the_draft_reaches_the_tokens_and_every_weight() -> None:
    made = latent_decoder().train()
    _, _, tokens, _ = given(made)
    tokens.requires_grad_()
    made.draft_loss(made.draft(spoken(tokens)), torch.randn(2, D, SIDE, SIDE)).backward()  # type: ignore[arg-type]
    assert tokens.grad is not None
    assert tokens.grad.flatten(1).norm(dim=1).min() > 0
    assert made.trunk.draft is not None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.trunk.draft.parameters())


def test_without_layers_there_is_no_draft() -> None:
    made = LatentDecoder(SIDE, D, **(SIZES | {"draft": 0}))  # type: ignore[arg-type]
    assert made.draft(spoken(torch.randn(1, K, C))) is None
    assert not [name for name, _ in made.named_parameters() if "draft" in name]


def test_a_draft_sees_the_style_and_without_one_is_that_of_any():
    draft = AttentionDraft(SIDE, D, 2, K, C, width=12, layers=1, heads=2, styles=3).eval()
    tokens = torch.randn(2, K, C)
    some, other = (draft(tokens, torch.full((2,), style)) for style in (0, 1))
    assert not torch.allclose(some, other)
    torch.testing.assert_close(draft(tokens), draft(tokens, torch.full((2,), 3)))


# ---- drawing from the draft ---------------------------------------------------------------------------------------


def from_the_draft(share: float) -> LatentDecoder:
    torch.manual_seed(0)
    made = LatentDecoder(SIDE, D, **SIZES, draft_start=share)  # type: ignore[arg-type]
    scatter(made.trunk, by=0.2)  # and its velocity is nothing: what it starts from is what it draws
    return made.eval()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_drawing_starts_from_the_draft_with_a_share_of_noise(share: float) -> None:
    made, times = from_the_draft(share), list[float]()
    start, _, tokens, embedding = given(made)
    settings, condition = made.Settings(), SpeechCondition(tokens, embedding, torch.zeros(2))

    def note(number: int, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        times.append(float(t) / 1000)
        return x

    drawn = made.sample(made.build_scheduler(settings, Sampling()), condition, start, 4, 1.0, None, note)
    assert made.trunk.draft is not None
    with torch.no_grad():
        known = made.trunk.draft.predicted(made.trunk.draft(tokens))
    torch.testing.assert_close(drawn, share * start + (1 - share) * known)
    assert times == pytest.approx([share, share * 3 / 4, share / 2, share / 4], abs=1e-3)


def test_training_sees_no_more_noise_than_drawing() -> None:
    made, seen = from_the_draft(0.3), list[torch.Tensor]()
    made.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    tokens, embedding = torch.zeros(500, K, C), torch.zeros(500, E)
    condition, drop = SpeechCondition(tokens, embedding, torch.zeros(500)), torch.zeros(500, dtype=torch.bool)
    FlowMatching(made)(torch.zeros(500, D, SIDE, SIDE), condition, drop, None)
    assert 0.2 < seen[0].max() < 0.3
    assert seen[0].min() < 0.1


def test_a_start_from_the_draft_takes_one() -> None:
    overrides = ["decoder={kind: latent-diffusion, draft_start: 0.5}", "stages.tokenizer.unquantised=0.5"]
    with pytest.raises(RecipeError, match=r"decoder.draft_start below 1 starts from a draft"):
        load_recipe("garden-tiny", overrides)
    assert load_recipe("garden-tiny", [*overrides, "decoder.draft=1"]).decoder.draft_start == 0.5  # type: ignore[attr-defined]


def test_a_draft_may_read_the_embedding():
    draft = AttentionDraft(SIDE, D, 2, K, C, width=12, layers=1, heads=2, embedding_width=5).eval()
    tokens, embedding = torch.randn(2, K, C), torch.randn(2, 5)
    assert not torch.allclose(draft(tokens, embedding=embedding), draft(tokens, embedding=-embedding))


# ---- a draft of fully connected layers ------------------------------------------------------------------------------


def direct_decoder(embedding_tokens: int = 0) -> LatentDecoder:
    torch.manual_seed(0)
    sizes = SIZES | {"draft_hidden": 64, "condition": "embedding", "styles": ("a", "b"), "draft_start": 0.5}
    made = LatentDecoder(SIDE, D, **sizes, embedding_tokens=embedding_tokens)  # type: ignore[arg-type]
    return scatter(made, by=0.2).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("memory", [0, 12])
def test_a_direct_draft_learns_pictures_by_heart(memory: int) -> None:
    torch.manual_seed(0)
    draft = DirectDraft(SIDE, D, 2, E, hidden=64, layers=2, styles=2, memory=memory)
    things = torch.nn.functional.normalize(torch.randn(6, E), dim=-1)
    pictures, optimizer = torch.randn(6, 2, D, SIDE, SIDE), torch.optim.Adam(draft.parameters(), 3e-3)
    for _ in range(300):
        thing, style = torch.randint(6, (32,)), torch.randint(2, (32,))
        drafted = draft(torch.zeros(32, K, C), style, things[thing])
        loss = draft.loss(drafted, pictures[thing, style])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    thing, style = torch.arange(6).repeat(2), torch.arange(2).repeat_interleave(6)
    shown = draft.predicted(draft(torch.zeros(12, K, C), style, things[thing]))
    assert shown.shape == (12, D, SIDE, SIDE)
    assert (shown - pictures[thing, style]).square().mean() < 0.05 * pictures.square().mean()


@pytest.mark.parametrize("embedding_tokens", [0, K + 3])
def test_a_decoder_of_the_embedding_reads_no_token_and_draws_in_the_style(embedding_tokens: int) -> None:
    made = direct_decoder(embedding_tokens)
    assert len(made.trunk.null_tokens) == (embedding_tokens or K)
    start, t, tokens, embedding = given(made)

    def drawn(tokens: torch.Tensor, embedding: torch.Tensor, style: int) -> torch.Tensor:
        condition = SpeechCondition(tokens, embedding, torch.zeros(2), torch.full((2,), style))
        return made.sample(made.build_scheduler(made.Settings(), Sampling()), condition, start, 2, 1.0)

    first = drawn(tokens, embedding, 0)
    torch.testing.assert_close(drawn(-tokens, embedding, 0), first)
    assert not torch.allclose(drawn(tokens, -embedding, 0), first)
    assert not torch.allclose(drawn(tokens, embedding, 1), first)
    assert made(start, t, tokens, embedding).shape == (2, D, SIDE, SIDE)


def test_a_memory_starts_as_the_views_it_is_given_and_looks_up_the_nearest() -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"draft_hidden": 16, "draft_memory": 5, "condition": "embedding"}
    made, views = LatentDecoder(SIDE, D, **sizes), torch.nn.functional.normalize(torch.randn(5, E), dim=-1)  # type: ignore[arg-type]
    assert made.views_wanted == 5
    assert direct_decoder().views_wanted == 0
    made.start_from(views)
    memory = made.trunk.draft.memory
    torch.nn.init.constant_(memory.sharpness, 6.0)
    torch.testing.assert_close(memory(views), memory.values.weight.T + memory.values.bias, atol=1e-3, rtol=1e-3)


def test_a_memory_takes_a_direct_draft_and_the_teachers_views() -> None:
    for given in (["decoder.draft_hidden=8"], ["decoder.condition=embedding", "stages.decoder.teacher_ratio=1"]):
        with pytest.raises(RecipeError, match=r"decoder.draft_memory is of a draft of fully connected"):
            load_recipe("garden-tiny", ["decoder.draft=1", "decoder.draft_memory=8", *given])


def test_tokens_of_the_embedding_take_a_decoder_that_reads_it() -> None:
    with pytest.raises(RecipeError, match=r"decoder.embedding_tokens are of the embedding: set decoder.condition"):
        load_recipe("garden-tiny", ["decoder.embedding_tokens=8"])


def test_the_width_of_a_draft_takes_one() -> None:
    with pytest.raises(RecipeError, match=r"decoder.draft_hidden is the width of a draft: give decoder.draft some"):
        load_recipe("garden-tiny", ["decoder.draft=0", "stages.decoder.draft_warmup=0", "decoder.draft_hidden=8"])
