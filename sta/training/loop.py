"""The one training loop: every stage is a `Task` that this loop trains.

Everything random in a step follows from (seed, stage, step) and the item's place in the whole batch, and the learning
rate from the step. So a stage that was stopped and started again does exactly what it would have done, and any number
of processes does what one would do, up to rounding.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from sta.config.recipe import Optimisation
from sta.data.cache import build_folder
from sta.distributed.sharding import BatchShard
from sta.errors import Interrupted, StaError, TrainingError, first_line
from sta.progress import Bar
from sta.signals import SIGNALS, deferred_signals
from sta.training import checkpoint, zero
from sta.training.batch import Batch
from sta.training.checkpoint import Checkpoints
from sta.training.faults import VARIABLE, Faults, parse_faults
from sta.training.record import Log, MicroBatches, Skipped
from sta.training.runtime import loading_processes, stop_anywhere
from sta.training.step import Outcome, Trainer
from sta.training.task import Task
from sta.training.watchdog import Watchdog

Batches = list[Batch]  # of one step, a rank's shard of it: one, or one for each part of the shard


class _Steps(Dataset[Batches | StaError]):
    """What a rank does in each step; an error of ours is an item, as a worker that raises it would wrap its words."""

    def __init__(self, task: Task, shards: Sequence[BatchShard]):
        self.task, self.shards = task, shards

    def __getitem__(self, step: int) -> Batches | StaError:
        try:
            return [self.task.batch(step, shard) for shard in self.shards]
        except StaError as error:
            return error


def _ignore_signals(worker: int) -> None:
    """Ignore a launcher's signals: this process has to make batches until its rank has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _steps(
    task: Task, shard: BatchShard, parts: MicroBatches, first: int, settings: Optimisation, device: torch.device
) -> Iterator[tuple[int, Batches]]:
    """Yield each step from `first` on and what this rank does in it; load anew when the parts have changed."""
    step, workers = first, loading_processes(device) if settings.workers is None else settings.workers
    while step < settings.steps:
        count = parts.count
        steps = _Steps(task, shard.split(count))
        loader = DataLoader(
            steps, None, sampler=range(step, settings.steps), num_workers=workers, worker_init_fn=_ignore_signals,  # type: ignore[arg-type, unused-ignore]
            multiprocessing_context="fork" if workers else None,  # a task is not to be pickled
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        for batches in loader:
            if isinstance(batches, StaError):
                raise batches
            yield step, batches
            step += 1
            if parts.count != count:
                break


def check_batch(stage: str, settings: Optimisation, accelerator: Accelerator) -> None:
    """Refuse a batch that the processes cannot share out evenly."""
    if settings.batch % accelerator.num_processes:
        processes = f"{accelerator.num_processes} processes"
        raise TrainingError(f"stage {stage}: batch {settings.batch} is not a multiple of {processes}")


def train(task: Task, settings: Optimisation, folder: Path, seed: int, accelerator: Accelerator) -> Path:
    """Train a task from its newest checkpoint, or the start, to its last step; returns `folder/final`.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state is saved.
        TrainingError: too many steps had a loss or gradient that is not finite, a checkpoint does not load or cannot
            be written, or the memory is too small for one item.
    """
    final = folder / "final"
    if final.exists():
        return final
    shard, main = BatchShard(accelerator.process_index, accelerator.num_processes), accelerator.is_main_process
    check_batch(task.name, settings, accelerator)
    faults = Faults(parse_faults(os.environ.get(VARIABLE, "")), folder / "log" / "faults.jsonl", shard.rank)
    parts = MicroBatches(task.name, folder / "log", settings.batch // shard.world)
    trainer = Trainer(task, settings, seed, accelerator, faults, parts.count)
    first = checkpoint.restore(accelerator, folder / "checkpoints")
    checkpoints = Checkpoints(accelerator, folder / "checkpoints", faults)
    log = Log(folder / "log", first, main)
    skipped = Skipped(task.name, folder / "log", first, settings.max_skipped_steps, main)
    outcomes, due = list[Outcome](), False
    bar = Bar(task.name, settings.steps, "steps", first, main)
    watchdog = Watchdog(settings.stall_timeout, task.name)
    with deferred_signals() as stop, bar, log, watchdog, checkpoints:
        for step, batches in _steps(task, shard, parts, first, settings, accelerator.device):
            # ---- one step -------------------------------------------------------------------------------
            faults.strike("step", step + 1)
            while True:
                try:
                    trainer.begin(step, batches)
                    task.training_step(trainer.update)
                    break
                except torch.OutOfMemoryError as error:
                    trainer.undo()
                    batches = _halve(parts, task, step, trainer, error)
            outcomes.append(trainer.end())
            # ---------------------------------------------------------------------------------------------
            done = step + 1
            leaving = stop_anywhere(accelerator, stop)
            saving = leaving or (done % settings.save_every == 0 and done < settings.steps)
            due = due or done % settings.log_every == 0 or done == settings.steps
            while len(outcomes) > (0 if due or saving else 1):  # the last one may still be on its way
                outcome = outcomes.pop(0)
                losses, fault = outcome.read()
                if fault is not None:
                    skipped.add(outcome.step, fault, task.items(outcome.step))
            if due and fault is None:
                due = False
                log.write(done, done * settings.batch, losses | skipped.count)
            bar.advance(note=f"loss {log.last:.3f}" if log.last is not None else "")
            if saving:
                checkpoints.save(done, log.loss_since_save(), done > task.phase_change_step)
            if leaving:
                checkpoints.wait()
                accelerator.wait_for_everyone()  # a launcher soon kills the others once one has left
                raise Interrupted(
                    f"stage {task.name}: stopped at step {done} of {settings.steps} and saved; run it again"
                )
            if done == task.phase_change_step:
                log.loss_since_save()
            checkpoints.look()
            watchdog.seen()
    return _finish(task, accelerator, trainer, folder)


def _halve(parts: MicroBatches, task: Task, step: int, trainer: Trainer, error: torch.OutOfMemoryError) -> Batches:
    """Do the step in smaller parts, as every step from now on; where it cannot be done again here, after a restart."""
    accelerator = trainer.accelerator
    smaller = [task.batch(step, part) for part in trainer.shard.split(parts.halved())]
    parts.halve()
    said = f"stage {task.name}: out of memory at step {step + 1} ({first_line(error)}); from now on the batch "
    said += f"is done {parts.shard // parts.count} items at a time on each process ({parts.path})"
    if accelerator.num_processes > 1 or trainer.is_deepspeed or trainer.updated:
        raise TrainingError(f"{said}: run the same command again to go on from the last checkpoint") from error
    print(f"sta: {said}", file=sys.stderr)
    accelerator.gradient_accumulation_steps = parts.count
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return smaller


def _finish(task: Task, accelerator: Accelerator, trainer: Trainer, folder: Path) -> Path:
    trained = accelerator.unwrap_model(trainer.model)
    accelerator.wait_for_everyone()
    with zero.whole(accelerator, trainer.model):
        if trainer.average is not None:
            trained.load_state_dict(trainer.average.module.state_dict())
        zero.restore_scalars(trained)
        if accelerator.is_main_process:
            build_folder(folder / "final", lambda partial: task.export(trained.eval(), partial))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return folder / "final"
