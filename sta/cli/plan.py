"""`sta plan`."""

from __future__ import annotations

import argparse

from sta.cli.locate import recipe_of
from sta.errors import StaError

WIDTH = 105  # of the widest table, where the terminal is narrower or there is none
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "overflow")  # in what torch says


def plan(options: argparse.Namespace) -> None:
    """Estimate what a recipe takes on some GPUs: parameters, memory, hours, disk."""
    from rich.console import Console

    from sta.plan.corpus import AtHand, facts_of, with_languages
    from sta.plan.memory import GIB
    from sta.plan.plan import Machines, plan_of
    from sta.plan.report import show, write
    from sta.progress import Bar
    from sta.training.stages import stage_names

    if options.seconds and options.longest and options.seconds > options.longest:
        raise StaError(f"--seconds {options.seconds:g} is above --longest {options.longest:g}; a mean is at most that")
    recipe = with_languages(recipe_of(options), options.languages)
    at_hand = AtHand(options.captions, options.seconds, options.longest, options.pictures)
    machines = Machines(options.gpus, options.nodes, options.memory * GIB, options.tflops, options.utilisation)
    sections = {name.partition("-")[0] for name in stage_names(recipe)}  # the first is the corpus
    try:
        with Bar("planning", len(sections), "parts") as bar:
            facts = facts_of(recipe, at_hand)
            bar.advance()
            made = plan_of(recipe, facts, machines, bar.advance)
    except (MemoryError, RuntimeError) as error:  # torch has no error of its own for want of memory
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise StaError(
            f"recipe '{recipe.name}': its networks are too large to be planned in the memory of this machine; take "
            "smaller sizes (such as decoder.width) or a smaller stages.*.batch"
        ) from error
    show(made, Console(width=max(WIDTH, Console().width)))
    if options.json:
        write(made, options.json)
