"""The sampler: any number of steps ends without a mask, and what it draws is the generator's alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta.models.scheduler import MaskReplaceOutput, MaskReplaceScheduler

V, N, T = 7, 30, 16
REVEAL_ORDERS = ["posterior", "purity"]


def belief(batch: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    return sharpness * torch.randn(1, N, V, generator=torch.Generator().manual_seed(seed)).expand(batch, N, V)


def sample(
    scheduler: MaskReplaceScheduler, logits: Tensor, generator: torch.Generator | list[torch.Generator]
) -> list[Tensor]:
    """Codes before the first step and after each."""
    codes = [torch.full(logits.shape[:2], scheduler.mask_id)]
    for t in scheduler.timesteps:
        (following,) = scheduler.step(logits, int(t), codes[-1], generator, return_dict=False)
        codes.append(following)
    return codes


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scheduler(steps: int, order: str, **settings: float) -> MaskReplaceScheduler:
    made = MaskReplaceScheduler(V, T, reveal=order, **settings)  # type: ignore[arg-type]
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("order", REVEAL_ORDERS)
@pytest.mark.parametrize("steps", range(1, T + 1))
def test_any_number_of_steps_ends_without_mask(steps: int, order: str) -> None:
    made = scheduler(steps, order)
    times = made.timesteps.tolist()
    assert len(set(times)) == steps
    assert times == sorted(times, reverse=True)
    assert times[0] == T
    assert [made.previous(t) for t in times] == [*times[1:], 0]
    codes = sample(made, belief(2), seeded(steps))
    assert codes[-1].shape == (2, N)
    assert codes[-1].min() >= 0
    assert codes[-1].max() < V
    masked = [(c == V).sum().item() for c in codes]
    assert masked == sorted(masked, reverse=True)


def test_more_steps_than_times_are_all_of_them_and_none_is_refused() -> None:
    assert scheduler(5 * T, "purity").timesteps.tolist() == list(range(T, 0, -1))
    with pytest.raises(ValueError, match="num_inference_steps 0"):
        scheduler(0, "purity")
    with pytest.raises(ValueError, match="reveal 'surest' is not one of posterior, purity"):
        MaskReplaceScheduler(V, reveal="surest")


@pytest.mark.parametrize("steps", [1, 3, 5, T])
def test_purity_reveals_as_many_as_the_schedule_says_and_keeps_them(steps: int) -> None:
    made = scheduler(steps, "purity")
    codes = sample(made, belief(3), seeded(0))
    for t, before, after in zip(made.timesteps.tolist(), codes, codes[1:], strict=False):
        s = made.previous(t)
        wanted = N if s == 0 else max(1, round(N * (1 - float(made.schedule.gamma[s]))))
        assert ((after != V).sum(1) == wanted).all()
        shown = before != V
        assert after[shown].equal(before[shown])


def test_purity_without_jitter_reveals_the_surest() -> None:
    logits = torch.zeros(1, N, V)
    surest = torch.randperm(N, generator=seeded(1))
    logits[0, surest, 0] = torch.linspace(12, 7, N)
    made = scheduler(4, "purity", purity_noise=0.0, truncation=1.0)
    (first,) = made.step(logits, T, torch.full((1, N), V), seeded(0), return_dict=False)
    count = int((first != V).sum())
    assert 0 < count < N
    assert set((first[0] != V).nonzero().flatten().tolist()) == set(surest[:count].tolist())


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_the_same_generator_is_the_same_picture(order: str) -> None:
    made = scheduler(4, order)
    one, two, other = (sample(made, belief(2), seeded(s))[-1] for s in (5, 5, 6))
    assert one.equal(two)
    assert not one.equal(other)
    assert not one[0].equal(one[1])


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_a_generator_per_item_makes_the_batch_irrelevant(order: str) -> None:
    made = scheduler(5, order)
    together = sample(made, belief(3), [seeded(s) for s in (1, 2, 3)])[-1]
    backwards = sample(made, belief(3), [seeded(s) for s in (3, 2, 1)])[-1]
    alone = torch.cat([sample(made, belief(1), [seeded(s)])[-1] for s in (1, 2, 3)])
    assert together.equal(alone)
    assert together.equal(backwards.flip(0))


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_a_sure_belief_is_drawn(order: str) -> None:
    wanted = torch.randint(V, (2, N), generator=seeded(0))
    logits = 40 * torch.nn.functional.one_hot(wanted, V).float()
    assert sample(scheduler(4, order), logits, seeded(1))[-1].equal(wanted)


@pytest.mark.parametrize("order", REVEAL_ORDERS)
def test_truncation_forbids_the_tail(order: str) -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.01, 0.01])).expand(8, N, V)
    drawn = [
        set(sample(scheduler(1, order, truncation=m), logits, seeded(1))[-1].unique().tolist()) for m in (0.75, 1.0)
    ]
    assert drawn[0] == {0, 1}
    assert drawn[1] == set(range(V))


def test_tuple_and_saved_configuration(tmp_path: Path) -> None:
    made = scheduler(3, "posterior", truncation=0.8)
    mask = torch.full((1, N), V)
    (codes,) = made.step(belief(1), T, mask, seeded(0), return_dict=False)
    whole = made.step(belief(1), T, mask, seeded(0))
    assert isinstance(whole, MaskReplaceOutput)
    assert codes.equal(whole.prev_sample)
    made.save_pretrained(tmp_path)
    again = MaskReplaceScheduler.from_pretrained(tmp_path)
    again.set_timesteps(3)
    assert (again.config.truncation, again.config.reveal, again.mask_id) == (0.8, "posterior", V)
    assert sample(again, belief(2), seeded(4))[-1].equal(sample(made, belief(2), seeded(4))[-1])
