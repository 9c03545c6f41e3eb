"""Attribute accuracy of generated pictures as a module of Hugging Face `evaluate`."""

import datasets
import evaluate

from sta.data.corpora.garden.world import SLOTS, World
from sta.metrics.attributes import attribute_rows

_DESCRIPTION = "Share of the spoken attributes that an attribute classifier sees in the generated picture."
_INPUTS = """
Args:
    predictions: per picture, what was read from it as a list of "slot=value"; a slot that is absent was not seen.
    references: per picture, what was spoken, likewise, with "kind=bird" or "kind=flower".
Returns:
    attributes, colours, exact: fractions, each with `_low`, `_high` (95 % bootstrap) and `_chance`.
"""


class AttributeAccuracy(evaluate.Metric):
    """Thin wrapper over `sta.metrics.attributes.attribute_rows`, in the whole Garden world."""

    def _info(self) -> evaluate.MetricInfo:
        values = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"predictions": values, "references": values})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        world = World({slot: values for slot, (_, values) in SLOTS.items()})
        said, read = ([dict(pair.split("=") for pair in item) for item in x] for x in (references, predictions))
        rows = attribute_rows(said, read, world, language="", split="", condition="", system="")
        numbers: dict[str, float] = {}
        for row in rows:
            numbers[row.metric] = row.value
            numbers |= {f"{row.metric}_{part}": getattr(row, part) for part in ("low", "high", "chance")}
        return numbers
