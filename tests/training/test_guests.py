"""A loss, a task and a teacher of one's own: one file each beside the recipe, by the way of every other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sta.config.recipe import Recipe, dump_recipe, load_recipe
from sta.distributed.sharding import BatchShard
from sta.errors import RecipeError
from sta.models.decoders.latent_diffusion import LatentDecoder
from sta.plan.networks import count
from sta.training.stages import open_run, run_stage, stage_names, task_of
from sta.training.tasks.decoder import DecoderTask
from tests.training.facts import FACTS

SMALL = (
    *("languages=[en]", "corpus.scenes=10", "corpus.phrases=0", "corpus.validation=1", "corpus.test=1"),
    *("corpus.swaps=1", "tokenizer.codes=8", "tokenizer.width=8", "precision=fp32"),
    *(f"stages.{stage}.{key}" for stage in ("teacher", "tokenizer", "distill", "decoder")
      for key in ("steps=2", "batch=4", "log_every=1", "warmup=0")),
)  # fmt: skip

LOSS = """
import numpy as np
import torch
from torch import nn

from sta.distributed import sharding
from sta.training.losses.base import DistillLoss


class Letters(DistillLoss):
    \"\"\"How long the caption is.\"\"\"

    def __init__(self, sizes, settings):
        super().__init__(sizes, settings)
        self.count = nn.Linear(sizes.token_width, 1)

    def targets(self, corpus, rows):
        return {"letters": torch.tensor([len(text) for text in corpus.column("text", rows)]) / 10}

    def forward(self, outputs, targets):
        found = self.count(outputs.speech.tokens.mean(1)).squeeze(-1)
        return sharding.mean((found - targets["letters"]).square())
"""

TASK = """
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from sta.config.recipe import Optimisation
from sta.training.batch import Batch
from sta.training.task import Task


class Settings(Optimisation):
    \"\"\"Its own section of the recipe.\"\"\"

    brightness: float = 0.5


@dataclass(frozen=True)
class Pictures(Batch):
    \"\"\"Pictures uint8 [B, H, W, 3].\"\"\"

    pixels: torch.Tensor


class MeanColour(nn.Module):
    def __init__(self, brightness):
        super().__init__()
        self.colour = nn.Parameter(torch.full((3,), brightness))

    def forward(self, batch):
        return {"mse": (batch.pixels.float().mean((0, 1, 2)) / 255 - self.colour).square().mean()}


class ColourTask(Task):
    Settings = Settings
    name = "tokenizer"
    weights = {"mse": 1.0}

    def __init__(self, workspace):
        self.pixels, settings = workspace.pixels, workspace.recipe.stages.tokenizer
        self.size, self.module = settings.batch, MeanColour(settings.brightness)

    def batch(self, step, shard):
        places = shard.of(np.arange(step * self.size, (step + 1) * self.size) % len(self.pixels))
        return Pictures(torch.from_numpy(np.array(self.pixels[places])))

    def items(self, step):
        return [str(step)]

    def export(self, module, folder):
        save_file(module.state_dict(), folder / "colour.safetensors")
"""

TEACHER = """
import torch
import torch.nn.functional as F

from sta.models.teachers.base import Preprocessing, Teacher


class Colours(Teacher):
    \"\"\"The mean colour of a picture, and how often a text names each.\"\"\"

    @classmethod
    def load(cls, card, folder=None):
        return cls(card, Preprocessing(card.image_size))

    def encode_images(self, pixels):
        return F.normalize(pixels.float().mean((1, 2)), dim=-1)

    def encode_texts(self, texts):
        counts = [[1.0 + text.count(colour) for colour in ("red", "green", "blue")] for text in texts]
        return F.normalize(torch.tensor(counts), dim=-1)
"""
CARD = """
name: colours
kind: guest_teacher:Colours
embedding_width: 3
image_size: 8
text_languages: [en]
licence: MIT
source: here
"""


STYLED = """
from sta.data.corpora.base import CorpusShard
from sta.data.corpora.garden.corpus import GardenSource


class Shard(CorpusShard):
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def samples(self):
        for number, found in enumerate(self.inner.samples()):
            found.row["style"] = ("round", None, "flat")[number % 3]
            yield found


class Styled(GardenSource):
    \"\"\"Garden, whose pictures are said to be drawn in two styles, or none.\"\"\"

    def shards(self):
        return [Shard(shard) for shard in super().shards()]
"""


def recipe(*overrides: str) -> Recipe:
    return load_recipe("garden-tiny", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of runs whose corpus is prepared and whose teacher is trained."""
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("runs")
    for stage in ("prepare", "teacher"):
        run_stage(open_run(recipe("name=before"), out), stage)
    yield out
    AcceleratorState._reset_state(reset_partial_state=True)


def train(runs: Path, stage: str, of: Recipe) -> list[dict[str, float]]:
    """Train one stage of a recipe on the prepared corpus; what it logged."""
    workspace = open_run(of, runs)
    for before in ("prepare", "teacher"):
        (workspace.stage(before)).mkdir()
        (workspace.stage(before) / "final").symlink_to(runs / "before" / before / "final")
    run_stage(workspace, stage)
    return [json.loads(line) for line in (workspace.stage(stage) / "log" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python looks into, with a file of one loss, of one task and of one teacher."""
    (tmp_path / "guest_loss.py").write_text(LOSS)
    (tmp_path / "guest_task.py").write_text(TASK)
    (tmp_path / "guest_teacher.py").write_text(TEACHER)
    (tmp_path / "colours.yaml").write_text(CARD)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("written")
def test_a_loss_of_ones_own_trains(runs: Path) -> None:
    logged = train(runs, "distill-pooled", recipe("name=loss", "stages.distill.losses={'guest_loss:Letters': 0.5}"))
    assert [line["step"] for line in logged] == [1, 2]
    assert logged[0]["guest_loss:Letters"] > 0
    assert {"image", "text", "ctc"} <= logged[0].keys()
    with_it = logged[0]["loss"] - 0.5 * logged[0]["guest_loss:Letters"]
    without = train(runs, "distill-pooled", recipe("name=without"))[0]["loss"]
    assert with_it == pytest.approx(without, rel=1e-5)


@pytest.mark.usefixtures("written")
@pytest.mark.slow
def test_the_styles_of_the_training_rows_become_a_condition(written: Path, tmp_path: Path) -> None:
    (written / "styled.py").write_text(STYLED)
    latents = ("decoder.kind=latent-diffusion", "tokenizer.codes=0")
    of = load_recipe(
        "garden-tiny",
        [
            "corpus.name=styled:Styled",
            *(s for s in SMALL if "codes" not in s),
            "stages.distill.losses.attributes=0",
            *latents,
        ],
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    workspace = open_run(of, tmp_path)
    for stage in stage_names(of)[:5]:
        run_stage(workspace, stage)
    assert workspace.styles == ["flat", "round"]
    task = DecoderTask(workspace, torch.device("cpu"))
    batches = [task.batch(step, BatchShard()).style for step in range(20)]
    assert {int(number) for style in batches if style is not None for number in style} == {0, 1, 2}
    made = LatentDecoder.from_pretrained(workspace.final("decoder") / "decoder")
    assert made.styles == ("flat", "round")


@pytest.mark.usefixtures("written")
def test_a_task_of_ones_own_takes_a_stages_place(runs: Path) -> None:
    given = "stages.tokenizer={task: 'guest_task:ColourTask', steps: 2, batch: 4, log_every: 1, brightness: 0.25}"
    of = recipe("name=task", given)
    assert of.stages.tokenizer.brightness == 0.25  # type: ignore[attr-defined]
    assert task_of(of, "tokenizer").__name__ == "ColourTask"
    assert stage_names(of) == stage_names(recipe())
    assert [line["step"] for line in train(runs, "tokenizer", of)] == [1, 2]
    assert load_file(runs / "task" / "tokenizer" / "final" / "colour.safetensors")["colour"].shape == (3,)
    (runs / "again.yaml").write_text(dump_recipe(of))
    assert load_recipe(runs / "again.yaml") == of


def test_a_teacher_of_ones_own_is_learnt_from(runs: Path, written: Path) -> None:
    of = recipe("name=teacher", f"teacher={written / 'colours.yaml'}")
    assert "teacher" not in stage_names(of)
    logged = train(runs, "distill-pooled", of)
    assert [line["step"] for line in logged] == [1, 2]
    assert {"image", "text", "ctc"} <= logged[0].keys()
    assert (3,) in {np.load(path, mmap_mode="r").shape[1:] for path in runs.glob("cache/*/teacher-*/image.npy")}


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("tokenizer={task: 'guest_task:ColourTask', steps: 2, batch: 4, brightnes: 1.0}",
         "unknown key 'stages.tokenizer.brightnes'; did you mean 'brightness'?"),
        ("tokenizer={task: 'guest_task:Pictures', steps: 2, batch: 4}", "'guest_task:Pictures' is no Task of"),
        ("tokenizer={task: 'guest_task:Nothing', steps: 2, batch: 4}", "'guest_task:Nothing' cannot be imported"),
        ("tokenizer={task: decodr, steps: 2, batch: 4}", "key 'stages.tokenizer.task' is 'decodr'; did you mean 'deco"),
        ("distill={task: 'guest_task:ColourTask', steps: 2, batch: 4}", "must extend DistillStage of sta.config"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_are_one_sentence(section: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(f"stages.{section}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_that_cannot_be_planned_says_so(written: Path) -> None:
    given = "stages.tokenizer={task: 'guest_task:ColourTask', steps: 2, batch: 4}"
    with pytest.raises(RecipeError, match="stage tokenizer: ColourTask has no `build_network`, without which"):
        count(recipe(given), FACTS, "tokenizer")
