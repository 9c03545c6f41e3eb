"""The speed benchmark: diffusers draws with the same weights, contestants take turns, and ratios are of one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sta.bench.reference import Reference, to_diffusers
from sta.bench.speed import (
    OURS,
    SAME,
    THEIRS,
    Contestant,
    bench_speed,
    in_turn,
    matrix_rows,
    matrix_share,
    published_twin,
    ratios,
    speed_table,
)  # fmt: skip
from sta.cli.main import main
from sta.inference.pipeline import SpeechToImagePipeline
from sta.metrics.rows import Interval, Report, Row
from sta.models.autoencoder import Autoencoder
from sta.models.decoders.vq_diffusion_published import PublishedDecoder
from tests.release_fixtures import CODES, KINDS, SIZE, tiny_pipeline, wave, write_tiny_release


@pytest.fixture(scope="module")
def published() -> SpeechToImagePipeline:
    return tiny_pipeline("vq-diffusion-published")


def decoder_of(pipe: SpeechToImagePipeline) -> PublishedDecoder:
    assert isinstance(pipe.decoder, PublishedDecoder)
    return pipe.decoder


def test_diffusers_gets_the_same_weights(published: SpeechToImagePipeline) -> None:
    made, tokens = decoder_of(published), published.encode_speech([wave(), wave(seed=1)], "en").tokens
    codes = torch.randint(CODES + 1, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = to_diffusers(made)(codes, encoder_hidden_states=tokens, timestep=torch.tensor(4)).sample
        ours = made(codes, torch.full((2,), 5 / 20), tokens).log_softmax(-1).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_diffusers_draws_what_is_heard(published: SpeechToImagePipeline) -> None:
    reference = Reference(decoder_of(published), published.tokenizer)
    tokens = published.encode_speech([wave(), wave(seed=1)], "en").tokens
    drawn = reference.draw(tokens, 20, 2.0, 0)
    assert drawn.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(drawn, reference.draw(tokens, 20, 2.0, 0))
    assert not np.array_equal(drawn, reference.draw(-3 * tokens, 20, 2.0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compared_is_as_large_as_the_release(kind: str) -> None:
    pipe = tiny_pipeline(kind)
    twin = published_twin(pipe)
    assert pipe.decoder.sizes == twin.decoder.sizes == {"width": 16, "layers": 2, "heads": 2}
    assert twin.prepare_latents(3).shape == (3, pipe.tokenizer.side**2)
    assert int(twin.prepare_latents(1).max()) == CODES


def test_contestants_take_turns() -> None:
    called: list[tuple[str, int]] = []
    three = [Contestant(name, 7, lambda steps, name=name: called.append((name, steps))) for name in "abc"]  # type: ignore[misc]
    seconds = in_turn(three, 2)
    assert called == [*((name, 1) for name in "abc"), *((name, 7) for name in "abcabc")]
    assert [len(times) for times in seconds] == [2, 2, 2]


def test_matrix_products_are_found() -> None:
    a = torch.randn(400, 400)
    mostly, hardly = (
        matrix_share(lambda: [a @ a for _ in range(20)]),
        matrix_share(lambda: [a.exp() for _ in range(20)]),
    )
    assert mostly > 0.5 > 0.05 > hardly


def test_on_a_gpu_no_share_of_the_cpus_time_is_given() -> None:
    assert [r.metric for r in matrix_rows(lambda: torch.ones(4) @ torch.ones(4, 4), torch.device("cpu"))] == [
        "matrix_products"
    ]
    assert matrix_rows(lambda: pytest.fail("nothing to measure"), torch.device("cuda")) == []


def test_the_report_has_every_contestant() -> None:
    report = bench_speed(tiny_pipeline("latent-diffusion"), [wave()] * 2, "en", (1, 2), 1)
    timed = [r for r in report.rows if r.metric == "seconds"]
    assert [r.system for r in timed] == [OURS, SAME, THEIRS, THEIRS] * 2
    steps = [r.condition.split(", ")[:2] for r in timed]
    assert steps == [[f"batch {b}", f"{n} steps"] for b in (1, 2) for n in (3, 3, 3, 100)]
    assert all(0 < r.low <= r.value <= r.high for r in timed)


def test_a_release_whose_tokenizer_has_no_codes_is_compared() -> None:
    made = tiny_pipeline("latent-diffusion")
    pipe = SpeechToImagePipeline(
        made.decoder, Autoencoder(SIZE, code_width=4, width=16, factor=4).eval(), made.scheduler
    )
    pipe.add_pack(made.pack("en"))
    report = bench_speed(pipe, [wave()], "en", (1,), 1)
    assert [r.system for r in report.rows if r.metric == "seconds"] == [OURS, SAME, THEIRS, THEIRS]


def test_ratios_are_of_the_same_batch_and_of_equal_or_of_own_steps() -> None:
    def row(system: str, condition: str, seconds: float) -> Row:
        where = {"language": "all", "split": "all", "condition": condition, "system": system}
        return Row.of("seconds", Interval(seconds, seconds, seconds), 1, **where)  # type: ignore[arg-type]

    rows = [
        row(OURS, "batch 1, 12 steps, fp32", 0.5), row(SAME, "batch 1, 12 steps, fp32", 0.3),
        row(THEIRS, "batch 1, 12 steps, fp32", 0.6), row(THEIRS, "batch 1, 100 steps, fp32", 5.0),
        row(OURS, "batch 12, 12 steps, fp32", 0.1),
    ]  # fmt: skip
    assert ratios(rows) == pytest.approx({0: 10.0, 1: 2.0})
    assert list(speed_table(Report({}, rows)).columns[-1].cells) == ["10.0 x", "2.0 x", "", "", ""]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_tiny_release(tmp_path / "release", "latent-diffusion")
    options = ["--batch", "1", "--repeats", "1", "--json", str(tmp_path / "speed.json")]
    assert main(["bench", "speed", "--weights", str(release), *options]) == 0
    assert THEIRS in capsys.readouterr().out
    assert {r.metric for r in Report.read(tmp_path / "speed.json").rows} == {"seconds", "matrix_products"}
