"""A run of two languages on one published model, frozen and without CTC, from the corpus to its release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sta.config.recipe import load_recipe
from sta.data.audio import write_wav
from sta.data.text import Pieces
from sta.inference.pipeline import SpeechToImagePipeline
from sta.inference.release import write_release
from sta.models.layers import length_mask
from sta.plan.corpus import AtHand, facts_of
from sta.plan.plan import _once
from sta.plan.storage import of_frozen
from sta.training.speech_features import cached_frames
from sta.training.stages import open_run, run_stage, stage_names
from sta.training.workspace import Workspace
from tests.release_fixtures import wave
from tests.tiny_whisper import write_whisper

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
SMALL = (
    *("languages=[en, ar]", "precision=fp32", "tokenizer.codes=8", "tokenizer.width=8", "encoder.heads=2"),
    *("encoder.width=12", "encoder.layers=1", "encoder.cache_frames=true", "encoder.backbone_layers=[0, 1]"),
    *("encoder.frame_pooling=2", "stages.distill.losses={ctc: 0, caption: 0}", "stages.distill.augment=0"),
    "stages.distill.gain=0",
    *(f"stages.{stage}.{key}" for stage in ("teacher", "tokenizer", "distill", "decoder")
      for key in ("steps=2", "batch=4", "log_every=1", "warmup=0")),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Every stage, after which the recordings' features are thrown away."""
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left one of other settings
    corpus, whisper = tmp_path_factory.mktemp("mine"), write_whisper(tmp_path_factory.mktemp("whisper"))
    for number in range(20):
        Image.new("RGB", (16, 16), (number * 12, 0, 0)).save(corpus / f"{number}.png")
        for code in ("en", "ar"):
            write_wav(corpus / f"{number}{code}.wav", wave(0.5 + 0.03 * number, seed=number))
    (corpus / "metadata.jsonl").write_text("\n".join(
        f'{{"audio": "{n}{code}.wav", "image": "{n}.png", "text": "picture {n}", "language": "{code}"}}'
        for n in range(20) for code in ("en", "ar")
    ))  # fmt: skip
    section = f"corpus={{name: folder, root: {corpus}, size: 16, validation: 0.2, test: 0.2}}"
    recipe = load_recipe("garden-tiny", [*SMALL, section, f"encoder.backbone={whisper}", "stages.teacher.steps=2"])
    made = open_run(recipe, tmp_path_factory.mktemp("runs"))
    for stage in stage_names(recipe):
        run_stage(made, stage)
    return made


@pytest.fixture(scope="module")
def release(run: Workspace) -> Path:
    return write_release(run)


def test_no_pieces_are_trained_where_nothing_reads_them(run: Workspace) -> None:
    assert run.prepared["pieces"].name == "no-pieces"
    assert {code: pieces.size for code, pieces in run.pieces.items()} == {"en": Pieces().size, "ar": Pieces().size}


def test_checkpoints_hold_what_is_trained_alone(run: Workspace) -> None:
    for stage in ("distill-pooled", "decoder"):
        for path in (run.stage(stage) / "checkpoints").rglob("*.safetensors"):
            with safe_open(path, "pt") as file:
                assert not [name for name in file.keys() if "acoustics.model" in name], path  # noqa: SIM118
    assert len(list(run.cache.glob("backbone-*"))) == 1


def test_a_release_holds_the_model_once_in_half_precision(release: Path) -> None:
    (shared,) = release.rglob("frozen-*.safetensors")
    assert shared.parent == release / "languages"
    weights = load_file(shared)
    assert {weight.dtype for weight in weights.values()} == {torch.half}
    assert 2 * sum(weight.numel() for weight in weights.values()) < shared.stat().st_size
    assert not [name for name in weights if "layers.1." in name], "a layer that is not summed"
    own = load_file(release / "languages" / "pooled" / "encoder" / "diffusion_pytorch_model.safetensors")
    assert not own.keys() & weights.keys()
    assert sorted(p.name for p in (release / "languages").iterdir()) == ["ar", "en", shared.name, "pooled"]


def test_it_is_loaded_and_saved_again_bit_for_bit(release: Path, tmp_path: Path) -> None:
    pipe = SpeechToImagePipeline.from_pretrained(release)
    pipe.save_pretrained(tmp_path / "again")
    again = SpeechToImagePipeline.from_pretrained(tmp_path / "again")
    shared, copied = (next(folder.rglob("frozen-*.safetensors")) for folder in (release, tmp_path / "again"))
    assert (copied.name, copied.read_bytes()) == (shared.name, shared.read_bytes())
    encoder, other = pipe.pack("en").encoder, again.pack("en").encoder
    assert encoder is pipe.pack("ar").encoder
    before, after = encoder.state_dict(), other.state_dict()
    assert all(value.dtype == torch.float32 for value in before.values() if value.is_floating_point())
    assert all(value.equal(after[name]) for name, value in before.items())
    drawn = [one([wave(), wave(seed=1)], language="ar", generator=torch.Generator().manual_seed(0), output_type="np")
             for one in (pipe, again)]  # fmt: skip
    np.testing.assert_array_equal(drawn[0].images, drawn[1].images)
    moved = SpeechToImagePipeline.from_pretrained(release)
    moved.add_language(tmp_path / "again" / "languages" / "ar")
    assert moved.pack("ar").encoder is moved.pack("en").encoder, "as it has the same weights"


@torch.no_grad()
def test_what_the_release_hears_is_what_was_trained_on(run: Workspace, release: Path) -> None:
    pipe, frames = SpeechToImagePipeline.from_pretrained(release), cached_frames(run, "pooled", CPU)
    rows = run.corpus.select("train", "ar")
    everyone = np.sort(np.concatenate([run.corpus.select("train", code) for code in ("en", "ar")]))
    values, lengths = frames.padded(np.searchsorted(everyone, rows).tolist(), 1)
    pack, mask = pipe.pack("ar"), length_mask(torch.from_numpy(lengths), values.shape[1])
    spoken = pack.encoder.language_indices(["ar"] * len(rows))
    wanted = pack.bottleneck(torch.from_numpy(values).float(), mask, spoken).tokens
    found = pipe.encode_speech([run.corpus.waveform(int(row)) for row in rows], "ar", num_tta_samples=1).tokens
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)
    assert (wanted[0] - wanted[1]).abs().max() > 0.05


def test_it_is_planned(run: Workspace) -> None:
    facts = facts_of(run.recipe, AtHand())
    items = {item.name: item.size for item in of_frozen(run.recipe, facts)}
    a_second = 25 * 2 * 16 * 2  # pooled frames of two layers of 16 in half precision
    assert items["frozen backbone's frames"] == pytest.approx(facts.recordings * facts.seconds * a_second)
    works, _ = _once(run.recipe, facts)
    assert works["frozen backbone's frames"] > 0
