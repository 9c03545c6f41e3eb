"""What DeepSpeed's ZeRO asks of the loop (Rajbhandari et al. 2020, arXiv 1910.02054); without it nothing is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import nn

from sta.config.recipe import Optimisation
from sta.private import drop_gradients


def configure(accelerator: Accelerator, module: nn.Module, settings: Optimisation, parts: int) -> None:
    """Tell DeepSpeed the sizes of the batch, and about scalars, which it fails to broadcast and to share out."""
    config = _config(accelerator)
    if config is None:
        return
    config["train_micro_batch_size_per_gpu"] = settings.batch // accelerator.num_processes // parts
    config["gradient_accumulation_steps"] = parts
    config["gradient_clipping"] = settings.max_grad_norm
    for scalar in (p for p in module.parameters() if p.ndim == 0):
        if shares_weights(accelerator):
            scalar.data, scalar.is_scalar = scalar.data.view(1), True  # type: ignore[attr-defined]
        else:
            scalar.ds_optim_param = True  # type: ignore[attr-defined]  # it is not broadcast


def restore_scalars(module: nn.Module) -> None:
    """Make scalars again of those that `configure` made vectors of one; within `whole`."""
    for scalar in (p for p in module.parameters() if hasattr(p, "is_scalar")):
        scalar.data = scalar.data.view(())


def shares_weights(accelerator: Accelerator) -> bool:
    """Return whether this is ZeRO-3, under which a rank holds only its part of the weights."""
    config = _config(accelerator)
    return config is not None and config["zero_optimization"]["stage"] == 3


def gather_own_parameters(accelerator: Accelerator, module: nn.Module) -> None:
    """Have ZeRO-3 gather for the whole step what it cannot see used.

    It gathers a layer's weights when the layer is called; a parameter that stands in a module of ours may be used by
    any of its methods, and by none of its layers.
    """
    if not shares_weights(accelerator):
        return
    from deepspeed import zero

    for owner in list(module.modules())[1:]:
        if not type(owner).__module__.startswith("torch."):
            for parameter in owner.parameters(recurse=False):
                zero.register_external_parameter(module, parameter)


def whole(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager[object]:
    """Within, every rank sees the whole weights."""
    if not shares_weights(accelerator):
        return nullcontext()
    from deepspeed import zero

    gathered: AbstractContextManager[object] = zero.GatheredParameters(list(model.parameters()))
    return gathered


def forget(accelerator: Accelerator, model: nn.Module) -> None:
    """Drop the gradients that DeepSpeed has added up of a step's parts; elsewhere the optimizer's `zero_grad` does."""
    if _config(accelerator) is None:
        return
    drop_gradients(model.optimizer, partitions_weights=shares_weights(accelerator))


def _config(accelerator: Accelerator) -> dict[str, Any] | None:
    """DeepSpeed's settings; None where it does not train."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else plugin.deepspeed_config
