"""What every decoder gives by its contract, whichever it is: losses, drawings and what it says of itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from sta.config.recipe import Sampling
from sta.distributed.sharding import BatchShard, sharded_step
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.base import PictureGrid, TokenSpace, find_decoder
from sta.models.diffusion import linear_schedule, q_sample
from tests.conftest import scatter
from tests.release_fixtures import KINDS, tiny_decoder, tiny_objective

GRID, SPACE = PictureGrid(4, 8, 3), TokenSpace(2, 3, 3)


def condition(batch: int, seed: int = 0) -> SpeechCondition:
    generator = torch.Generator().manual_seed(seed)
    tokens, embedding = (torch.randn(batch, *shape, generator=generator) for shape in ((2, 3), (3,)))
    return SpeechCondition(tokens, embedding, torch.zeros(batch))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_decoder_says_of_itself(kind: str) -> None:
    made, settings = tiny_decoder(kind, GRID, SPACE)
    assert made.title
    assert made.reads(settings)[0] == made.target
    assert made.has_draft(settings) == (
        made.draft(SpeechCondition(torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.zeros(1))) is not None
    )
    assert made.has_draft(settings) <= ("latents" in made.reads(settings))
    x0 = {"codes": (3, 16), "latents": (3, 3, 4, 4)}[made.target]
    assert made.start(3, seeded(), torch.device("cpu")).shape == x0
    assert isinstance(made.build_scheduler(settings, Sampling()), SchedulerMixin)
    assert made.positions(settings, 8) == 64 // getattr(settings, "patch_size", 1) ** 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_learns_one_picture(kind: str) -> None:
    loss, x0 = tiny_objective(kind)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    first: dict[str, float] = {}
    for _ in range(150):
        losses = loss(x0, SpeechCondition(torch.zeros(16, 2, 3), torch.zeros(16, 3), torch.zeros(16)),
                      torch.zeros(16, dtype=torch.bool), None)  # fmt: skip
        assert losses.keys() == loss.decoder.loss_weights.keys()
        first = first or {k: float(v.detach()) for k, v in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    for name, value in losses.items():
        assert value < 0.5 * first[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_no_weight_is_not_computed(kind: str) -> None:
    made, settings = tiny_decoder(kind, GRID, SPACE, draft=0)
    x0 = {"codes": torch.zeros(2, 16, dtype=torch.long), "latents": torch.zeros(2, 3, 4, 4)}[made.target]
    losses = made.objective(settings, made.loss_weights)(x0, condition(2), torch.zeros(2, dtype=torch.bool), None)
    assert losses.keys() == {name for name, weight in made.loss_weights.items() if weight}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_callback_sees_each_step_and_may_change_it(kind: str) -> None:
    made, settings = tiny_decoder(kind, GRID, SPACE)
    scatter(made, by=0.2).eval()
    scheduler, start = made.build_scheduler(settings, Sampling()), made.start(2, seeded(), torch.device("cpu"))
    seen: list[tuple[int, float]] = []

    def look(number: int, t: Tensor, x: Tensor) -> Tensor:
        seen.append((number, float(t)))
        return x

    plain = made.sample(scheduler, condition(2), start, 5, 2.0, seeded())
    assert made.sample(scheduler, condition(2), start, 5, 2.0, seeded(), look).equal(plain)
    assert [number for number, _ in seen] == list(range(5))
    assert sorted(seen, key=lambda one: -one[1]) == seen
    assert not made.sample(scheduler, condition(2), start, 5, 2.0, seeded(), lambda n, t, x: x * 0).any()


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradient() -> None:
    loss, x0 = tiny_objective("latent-diffusion")
    found: list[list[Tensor | None]] = []
    for module in (loss, copy.deepcopy(loss)):
        if found:
            module.decoder.compile_repeated_blocks()
        with sharded_step(BatchShard(), 16, seed=1):
            module(x0, condition(16), torch.zeros(16, dtype=torch.bool), None)["flow"].backward()
        found.append([p.grad for p in module.parameters()])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=1e-4)


# ---- precision ------------------------------------------------------------------------------------------------


def dtypes_within(made: torch.nn.Module, run: Any) -> dict[str, set[torch.dtype]]:
    """The dtypes that each kind of layer gives back: what the residual stream is made of."""
    found: dict[str, set[torch.dtype]] = {}

    def note(module: torch.nn.Module, _: Any, out: Tensor) -> None:
        found.setdefault(type(module).__name__, set()).add(out.dtype)

    names = {*made._repeated_blocks, "LayerNorm"}  # type: ignore[union-attr, misc]
    hooks = [m.register_forward_hook(note) for m in made.modules() if type(m).__name__ in names]
    run()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_stream_is_of_bfloat16_under_autocast_alone(kind: str) -> None:
    made, settings = tiny_decoder(kind, GRID, SPACE)
    scatter(made, by=0.2).eval()
    x, t = made.start(4, seeded(), torch.device("cpu")), torch.linspace(0.1, 1, 4)
    if made.target == "codes":
        x = q_sample(torch.arange(16).expand(4, -1) % 8, (t * 20).long(), linear_schedule(20, 8))
    given = condition(4)

    def run(autocast: bool) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out: Tensor = made(x, t, given.tokens, given.embedding, torch.tensor([True, False] * 2))
            return out.float()

    plain, fast = (run(autocast) for autocast in (False, True))
    torch.testing.assert_close(
        fast, plain, atol=0.03 * float(plain.abs().max()), rtol=0
    )  # 2^-9, some ten times in turn
    assert set.union(*dtypes_within(made, lambda: run(False)).values()) == {torch.float32}
    within = dtypes_within(made, lambda: run(True))
    assert within.keys() == {*(made._repeated_blocks if made.has_draft(settings) else ["_Block"]), "LayerNorm"}
    assert set.union(*within.values()) == {torch.bfloat16}


# ---- nothing waits for a GPU ----------------------------------------------------------------------------------

META = torch.device("meta")  # whatever asks for a number of a tensor, or for a shape that depends on one, fails there


def on_meta(given: SpeechCondition) -> SpeechCondition:
    return SpeechCondition(*(part.to(META) for part in (given.tokens, given.embedding, given.kl)))


def test_the_meta_device_gives_no_numbers() -> None:
    for ask in (lambda x: x.tolist(), lambda x: int(x.sum()), lambda x: bool(x.any()), lambda x: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask(torch.ones(3, device=META))


@pytest.mark.parametrize("reveal", ["purity", "posterior"])
@pytest.mark.parametrize("kind", KINDS)
def test_drawing_asks_no_tensor_for_a_number(kind: str, reveal: str) -> None:
    made, settings = tiny_decoder(kind, GRID, SPACE)
    scheduler = made.build_scheduler(settings, Sampling.model_validate({"reveal": reveal}))
    start = made.start(2, None, META)
    drawn = made.to(META).eval().sample(scheduler, on_meta(condition(2)), start, 4, 2.0)
    assert drawn.shape == start.shape
    assert drawn.device == META


@pytest.mark.parametrize("kind", KINDS)
def test_training_asks_no_tensor_for_a_number(kind: str) -> None:
    loss, x0 = tiny_objective(kind, draft=1)
    given, drop = on_meta(condition(16)), torch.zeros(16, dtype=torch.bool, device=META)
    drafted = loss.to(META).decoder.draft(given)
    losses = loss(x0.to(META), given, drop, drafted)
    if drafted is not None:
        losses["draft"] = loss.decoder.draft_loss(drafted, torch.zeros(16, 3, 4, 4, device=META))
    torch.stack(list(losses.values())).sum().backward()


def test_a_decoder_is_found_by_name_or_place() -> None:
    assert find_decoder("latent-diffusion").__name__ == "LatentDecoder"
    assert find_decoder("sta.models.decoders.vq_diffusion:CodeDecoder") is find_decoder("vq-diffusion")
