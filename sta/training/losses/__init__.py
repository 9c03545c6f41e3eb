"""Losses of the distill stage: one file each, which a recipe names with its weight in `stages.distill.losses`."""
