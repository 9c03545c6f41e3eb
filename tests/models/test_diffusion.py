"""Mask-and-replace diffusion against explicit matrices on a codebook of five."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sta.distributed.sharding import BatchShard, sharded_step
from sta.models.diffusion import (
    Schedule,
    guide,
    linear_schedule,
    posterior,
    q_sample,
    sample_categorical,
    truncate,
    variational_loss,
)

V, T = 5, 12
SCHEDULE = linear_schedule(T, V, replaced=0.3)


def transition(alpha: float, beta: float, gamma: float) -> Tensor:
    """Q[i, j] = q(x_t = j | x_s = i), the mask last (Eq. 8)."""
    matrix = torch.zeros(V + 1, V + 1, dtype=torch.float64)
    matrix[:V, :V] = beta + alpha * torch.eye(V, dtype=torch.float64)
    matrix[:V, V] = gamma
    matrix[V, V] = 1
    return matrix


def jump(s: int, t: int) -> Tensor:
    return transition(*(float(x) for x in SCHEDULE.between(torch.tensor(s), torch.tensor(t))))


def cumulative(t: int) -> Tensor:
    return transition(float(SCHEDULE.alpha[t]), float(SCHEDULE.beta[t]), float(SCHEDULE.gamma[t]))


def brute_force(x0: Tensor, xt: int, s: int, t: int) -> Tensor:
    """Sum over x_0 of p(x_0) q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0)."""
    given_x0 = jump(s, t)[:, xt][None] * cumulative(s)[:V] / cumulative(t)[:V, xt][:, None]  # [x_0, x_s]
    joint = (x0.double()[:, None] * given_x0).sum(0)
    return joint / joint.sum()


@pytest.mark.parametrize(
    ("timesteps", "codebook", "replaced"), [(1, 2, 0.0), (12, 5, 0.3), (100, 256, 0.1), (1000, 1024, 1.0)]
)
def test_rows_of_every_transition_sum_to_one(timesteps: int, codebook: int, replaced: float) -> None:
    schedule = linear_schedule(timesteps, codebook, replaced)
    assert schedule.timesteps == timesteps
    ones = torch.ones(timesteps + 1, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha + codebook * schedule.beta + schedule.gamma, ones)
    assert (schedule.alpha[0], schedule.beta[0], schedule.gamma[0]) == (1, 0, 0)
    assert schedule.gamma[-1] > 0.9999
    assert (schedule.gamma.diff() > 0).all()
    assert all((bar >= -1e-15).all() for bar in (schedule.alpha, schedule.beta, schedule.gamma))
    s = torch.arange(timesteps)
    alpha, beta, gamma = schedule.between(s, s + 1)
    torch.testing.assert_close(alpha + codebook * beta + gamma, ones[1:])
    assert all((part >= -1e-15).all() for part in (alpha, beta, gamma))


def test_jumps_multiply_to_the_cumulative_transition() -> None:
    for t in range(1, T + 1):
        product = torch.eye(V + 1, dtype=torch.float64)
        for s in range(t):
            product = product @ jump(s, s + 1)
        torch.testing.assert_close(product, cumulative(t))
        torch.testing.assert_close(jump(0, t), cumulative(t))
        torch.testing.assert_close(cumulative(t // 2) @ jump(t // 2, t), cumulative(t))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_posterior_is_bayes_by_explicit_matrices(data: st.DataObject) -> None:
    t = data.draw(st.integers(1, T))
    s = data.draw(st.integers(0, t - 1))
    xt = data.draw(st.integers(0, V))
    x0 = torch.tensor(data.draw(st.lists(st.floats(0.01, 1), min_size=V, max_size=V)))
    x0 = F.one_hot(x0.argmax(), V).float() if data.draw(st.booleans()) else x0 / x0.sum()
    got = posterior(x0[None, None], torch.tensor([[xt]]), torch.tensor([s]), torch.tensor([t]), SCHEDULE)
    assert got.shape == (1, 1, V + 1)
    torch.testing.assert_close(got[0, 0].double(), brute_force(x0, xt, s, t), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.sum(), torch.tensor(1.0))


def test_posterior_takes_each_row_of_a_batch_at_its_own_time(generator: torch.Generator) -> None:
    x0 = torch.rand(4, 3, V, generator=generator).softmax(-1)
    xt = torch.tensor([[0, 4, V], [V, 1, 2], [3, V, V], [V, 0, 1]])
    s, t = torch.tensor([0, 3, 5, 11]), torch.tensor([1, 9, 12, 12])
    got = posterior(x0, xt, s, t, SCHEDULE)
    for b in range(4):
        for n in range(3):
            wanted = brute_force(x0[b, n], int(xt[b, n]), int(s[b]), int(t[b]))
            torch.testing.assert_close(got[b, n].double(), wanted, atol=1e-5, rtol=1e-4)


def test_a_step_to_zero_draws_no_mask(generator: torch.Generator) -> None:
    x0 = torch.rand(3, 2, V, generator=generator).softmax(-1)
    xt = torch.tensor([[V, 0], [V, V], [1, V]])
    got = posterior(x0, xt, torch.zeros(3, dtype=torch.long), torch.full((3,), 7), SCHEDULE)
    assert (got[..., V] == 0).all()
    torch.testing.assert_close(got[0, 0, :V], x0[0, 0])  # a mask tells nothing of what was there


@pytest.mark.parametrize("t", [1, 6, 12])
def test_corrupt_has_the_frequencies_of_the_schedule(t: int) -> None:
    codes = torch.arange(V).repeat(2, 4000)
    torch.manual_seed(0)
    noisy = q_sample(codes, torch.full((2,), t), SCHEDULE)
    assert noisy.shape == codes.shape
    counts = torch.zeros(V, V + 1, dtype=torch.float64)
    counts.index_put_(
        (codes.flatten(), noisy.flatten()), torch.ones(codes.numel(), dtype=torch.float64), accumulate=True
    )
    frequencies = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(frequencies, cumulative(t)[:V], atol=0.02, rtol=0)


def test_corrupt_leaves_time_zero_alone_and_repeats() -> None:
    codes = torch.arange(V).repeat(3, 20)
    assert q_sample(codes, torch.zeros(3, dtype=torch.long), SCHEDULE).equal(codes)
    drawn = []
    for _ in range(2):
        with sharded_step(BatchShard(), 3, seed=3):
            drawn.append(q_sample(codes, torch.full((3,), 6), SCHEDULE))
    assert drawn[0].equal(drawn[1])
    mixed = q_sample(codes, torch.tensor([0, T, 0]), SCHEDULE)
    assert mixed[0].equal(codes[0])
    assert (mixed[1] == V).all()


def test_variational_loss_is_zero_for_the_truth_and_positive_otherwise(generator: torch.Generator) -> None:
    x0 = torch.randint(V, (T, 8), generator=generator)
    t = torch.arange(1, T + 1)
    xt = q_sample(x0, t, SCHEDULE)
    truth = 60 * F.one_hot(x0, V).float()
    assert abs(float(variational_loss(truth, x0, xt, t, SCHEDULE))) < 1e-5
    worse = float(variational_loss(torch.zeros(T, 8, V), x0, xt, t, SCHEDULE))
    worst = float(variational_loss(-truth, x0, xt, t, SCHEDULE))
    assert 0.01 < worse < worst


def test_variational_loss_is_the_kl_of_brute_force(generator: torch.Generator) -> None:
    x0, t = torch.randint(V, (4, 3), generator=generator), torch.tensor([1, 4, 9, 12])
    xt = q_sample(x0, t, SCHEDULE)
    logits = torch.randn(4, 3, V, generator=generator)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(4):
        for n in range(3):
            time = int(t[b])
            true = brute_force(F.one_hot(x0[b, n], V).double(), int(xt[b, n]), time - 1, time)
            belief = brute_force(logits[b, n].softmax(-1), int(xt[b, n]), time - 1, time)
            total += torch.where(true > 0, true * (true.clamp_min(1e-300) / belief.clamp_min(1e-300)).log(), true).sum()
    loss = variational_loss(logits, x0, xt, t, SCHEDULE)
    torch.testing.assert_close(loss.double(), total / 12, atol=1e-4, rtol=1e-3)


def test_guidance_of_one_is_the_condition_and_more_goes_past_it(generator: torch.Generator) -> None:
    conditional, unconditional = torch.randn(2, 4, V, generator=generator).unbind()
    torch.testing.assert_close(guide(conditional, unconditional, 1.0).softmax(-1), conditional.softmax(-1))
    torch.testing.assert_close(guide(conditional, unconditional, 0.0).softmax(-1), unconditional.softmax(-1))
    tempered = (conditional.softmax(-1) ** 3 / unconditional.softmax(-1) ** 2).log()
    torch.testing.assert_close(guide(conditional, unconditional, 3.0).softmax(-1), tempered.softmax(-1))


probabilities = st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda p: sum(p) > 0.1).map(
    lambda p: torch.tensor(p) / sum(p)
)  # fmt: skip


@given(probabilities, st.floats(0.05, 1))
def test_truncation_keeps_the_mass_and_the_likeliest(p: Tensor, mass: float) -> None:
    cut = truncate(p, mass)
    kept = cut > 0
    torch.testing.assert_close(cut.sum(), torch.tensor(1.0))
    assert p[kept].sum() >= mass - 1e-5
    torch.testing.assert_close(cut[kept], p[kept] / p[kept].sum(), atol=1e-5, rtol=1e-4)
    if not kept.all():
        assert p[kept].min() >= p[~kept].max()
        assert p[kept].sum() - p[kept].min() < mass + 1e-5  # and no more of them than need be


def test_truncation_of_one_changes_nothing() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]])
    assert truncate(p, 1.0).equal(p)
    torch.testing.assert_close(truncate(p, 0.5), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))


@given(probabilities, st.floats(0, 1, exclude_max=True, exclude_min=True))
def test_draw_inverts_the_distribution_function(p: Tensor, u: float) -> None:
    uniform = torch.tensor(min(u, 1 - 1e-6)).clamp_min(1e-7)
    code = int(sample_categorical(p, uniform))
    levels = p.double().cumsum(0)
    below = float(levels[code - 1]) if code else 0.0
    assert below - 1e-5 <= float(uniform) <= float(levels[code]) + 1e-5
    assert p[code] > 0


def test_draw_of_zero_is_a_code_that_can_be(generator: torch.Generator) -> None:
    assert int(sample_categorical(torch.tensor([0.0, 0.5, 0.5]), torch.tensor(0.0))) == 1
    assert int(sample_categorical(torch.tensor([0.5, 0.0, 0.5]), torch.tensor(0.5))) == 2


def test_draw_has_the_frequencies_it_is_given(generator: torch.Generator) -> None:
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    codes = sample_categorical(p.expand(20_000, 4), torch.rand(20_000, generator=generator))
    frequencies = torch.bincount(codes, minlength=4) / 20_000
    torch.testing.assert_close(frequencies, p, atol=0.015, rtol=0)
    assert sample_categorical(2 * p, torch.tensor(0.9)) == sample_categorical(p, torch.tensor(0.9))


def test_schedule_is_frozen() -> None:
    with pytest.raises(AttributeError):
        SCHEDULE.codebook = 3  # type: ignore[misc]
    assert isinstance(SCHEDULE, Schedule)
