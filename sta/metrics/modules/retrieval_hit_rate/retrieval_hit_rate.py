"""Speech-image retrieval by SpeechCLIP's protocol as a module of Hugging Face `evaluate`."""

import datasets
import evaluate
import torch

from sta.metrics.retrieval import retrieval_rows, unique_images
from sta.metrics.rows import as_numbers

_DESCRIPTION = "Hit rates at 1, 5 and 10 between spoken captions and unique pictures, in both directions."
_INPUTS = """
Args:
    predictions: per caption, the embedding of its speech.
    references: per caption, the embedding of its picture; the last seen of each id is used.
    image_ids: per caption, the id of its picture.
Returns:
    r1, r5 and r10 of speech_to_image and image_to_speech: fractions, each with `_low`, `_high` (95 %
    bootstrap) and `_chance`.
"""


class RetrievalHitRate(evaluate.Metric):
    """Thin wrapper over `sta.metrics.retrieval.retrieval_rows`."""

    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float32"))
        features = datasets.Features(
            {"predictions": embedding, "references": embedding, "image_ids": datasets.Value("string")}
        )
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], image_ids: list[str]
    ) -> dict[str, float]:
        ids, images = unique_images(image_ids, torch.tensor(references))
        where = {"language": "", "split": "", "condition": "", "system": ""}
        return as_numbers(retrieval_rows(torch.tensor(predictions), images, image_ids, ids, **where))
