"""Attribute accuracy of generated pictures as a module of Hugging Face `evaluate`."""

import datasets
import evaluate

from sta.data.corpora.garden.world import SLOTS, World
from sta.metrics.attributes import attribute_rows
from sta.metrics.rows import as_numbers

_DESCRIPTION = "Share of the spoken attributes that an attribute classifier sees in the generated picture."
_INPUTS = """
Args:
    predictions: per picture, the classifier's list of "slot=value"; a slot that is absent was not seen.
    references: per picture, what the caption names, likewise, with "kind=bird" or "kind=flower".
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
        true, seen = ([dict(pair.split("=") for pair in item) for item in x] for x in (references, predictions))
        rows = attribute_rows(true, seen, world, language="", split="", condition="", system="")
        return as_numbers(rows)
