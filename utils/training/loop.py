"""The engine of training: `fit`, and one epoch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.backends import cudnn
from tqdm import tqdm

from utils.distributed.collectives import all_reduce_gradients, any_rank
from utils.distributed.group import barrier, world_size
from utils.errors import DeviceError, DivergedError
from utils.io.checkpoint import num_of_trainable_params
from utils.runtime.device import device_errors_as_input_errors, device_of
from utils.runtime.signals import Interrupted, deferred_signals
from utils.training.losses import MeanOverPairs
from utils.training.resume import TrainingFiles, random_state, set_random_state
from utils.training.state import TrainingState, deciding, scalar_name
from utils.training.steps import Step, global_step, rerank_step

FETCH_EVERY = 20  # iterations between two looks at losses and accuracies: each waits for the device


def fit(
    state: TrainingState,
    step: Step,
    loader,
    validate: Callable[[], tuple],
    epochs: int,
    log,
    report: Callable[[dict, int, str, bool], None],
    files: TrainingFiles,
    autotune: bool,
) -> float:
    """Validate, then train and validate until `epochs` are trained, from wherever `state` is; returns the best measure.

    `validate()` returns what the metric functions do. `log.log_scalar(name, value, step)` takes train.loss, train.acc
    and val.recall@K (and val.mAP@R), the latter at the number of epochs trained, also those that the state has from
    before. `report(recalls, columns, title, improved)` is called after each validation. Whenever mAP@R, or without it
    R@1, is not below the best so far, `files` takes the checkpoint; after each epoch, and while it lasts, it takes what
    the run is continued from. A signal is raised when the iteration has ended and is saved; while validating, at once,
    with the epoch saved.
    `autotune` has cuDNN try its algorithms while training. Raises InputError at the end for files that could not be
    written.
    """
    print(f"trainable parameters: {num_of_trainable_params(state.modules):,}")
    for scalar in state.scalars:
        log.log_scalar(*scalar)
    scalars = RecordedScalars(state.scalars, log)
    while True:
        if not state.is_validated:
            cudnn.benchmark = False
            try:
                recalls, _, positions = validate()
            except DeviceError:  # nothing more can be had from it
                raise
            except (Interrupted, Exception):
                files.save_last(state)
                raise
            with deferred_signals():
                for k, recall in recalls.items():
                    scalars.log_scalar(scalar_name(k), recall, state.epoch)
                measure = deciding(recalls)
                improved = state.best is None or measure >= state.best
                state.is_validated = True
                if improved:
                    state.best = measure
                    files.save_best(state)
                files.save_last(state)
                title = f"Validation [{state.epoch - 1:03d}] " if state.epoch else "Validation before training "
                report(recalls, positions.shape[1], title, improved)
        if state.epoch >= epochs:
            files.check()
            return state.best  # type: ignore[return-value]
        cudnn.benchmark = autotune
        train_epoch(state, step, loader, scalars, files)


@dataclass
class RecordedScalars:
    """A log that also keeps what it takes."""

    rows: list[tuple[str, float, float]]
    log: Any

    def log_scalar(self, name: str, value: float, step: float) -> None:
        self.rows.append((name, value, step))
        self.log.log_scalar(name, value, step)


def train_epoch(state: TrainingState, step: Step, loader, log=None, files: TrainingFiles | None = None) -> None:
    """One epoch of steps, from the iteration where `state` is; steps the scheduler at its end.

    `loader` yields images (B, 3, H, W), or what becomes such on the device, labels (B,) and positions (B,). Iteration i
    is logged at epoch + i / len(loader). Raises DivergedError for a loss that is not finite.
    """
    modules, optimizer, scaler = state.modules.train(), state.optimizer, state.scaler
    sampler: Any = getattr(loader, "batch_sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(state.epoch, state.iteration)
    device, scalars = device_of(state.model), PendingScalars(log, state.epoch)
    title, is_stopping = f"Training   [{state.epoch:03d}]", False

    def save() -> None:
        if files is not None:
            scalars.fetch(state.iteration, len(loader))
            files.save_last(state)

    with (
        device_errors_as_input_errors("dataset.batch_size or set micro_batch"),
        tqdm(batches_on(device, loader, save), title, len(loader), initial=state.iteration, unit="batch") as progress,
        deferred_signals() as signal_has_come,
    ):
        for images, labels, positions in progress:
            optimizer.zero_grad()
            drawn_from = random_state()
            try:
                loss, accuracy = step(images, labels, scaler.scale)
                all_reduce_gradients(modules.parameters())
                is_stopping = any_rank(signal_has_come())
            except RuntimeError:  # weights are as the last iteration has left them
                if device.type == "cpu" or world_size() == 1:  # else the GPU may wait for another rank for ever
                    set_random_state(drawn_from)
                    save()
                raise
            scaler.step(optimizer)
            scaler.update()
            scalars.add(loss, accuracy, positions)
            state.iteration += 1
            is_last = state.iteration == len(loader)
            if state.iteration % FETCH_EVERY == 0 or is_last:
                loss_value, accuracy_value = scalars.fetch(state.iteration, len(loader))
                rate = optimizer.param_groups[0]["lr"]
                progress.set_postfix(loss=f"{loss_value:.4f}", acc=f"{accuracy_value:.4f}", lr=f"{rate:.1e}")
            if not is_last and (is_stopping or (files is not None and files.is_due())):
                save()
                if is_stopping:
                    break
        else:
            state.scheduler.step()
            state.epoch, state.iteration, state.is_validated = state.epoch + 1, 0, False
            if files is not None and (signal_has_come() or files.is_due()):
                files.save_last(state)
        if is_stopping:
            barrier()  # a launcher may end the first process, which saves, once another one has ended


def batches_on(device: torch.device, loader, save: Callable[[], None]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A loader's batches, images and labels on a device; where the next one cannot be had, `save` comes before the
    error."""
    batches = iter(loader)
    while True:
        try:
            images, labels, positions = next(batches)
            batch = images.to(device, non_blocking=True), labels.to(device, non_blocking=True), positions
        except StopIteration:
            return
        except Exception:
            save()
            raise
        yield batch


@dataclass
class PendingScalars:
    """Losses and accuracies that are still on the device, and the images that they are of."""

    log: Any  # or None
    epoch: int
    values: list[Tensor] = field(default_factory=list)  # (loss, accuracy) of an iteration each
    positions: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, accuracy: Tensor, positions: Tensor) -> None:
        self.values.append(torch.stack((loss.detach(), accuracy)))
        self.positions.append(positions)

    def fetch(self, end: int, iterations: int) -> tuple[float, float]:
        """Log those of the iterations before `end`, of so many in the epoch; the last ones, NaN where there are none.

        Raises DivergedError for a loss that is not finite.
        """
        loss = accuracy = math.nan
        start, rows = end - len(self.values), torch.stack(self.values).tolist() if self.values else []
        for iteration, (loss, accuracy), positions in zip(range(start, end), rows, self.positions, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss is {loss} at epoch {self.epoch + 1}, iteration {iteration + 1}, of the training images "
                    f"{positions.tolist()}: training stops; lower lr, or look at these photos"
                )
            if self.log is not None:
                self.log.log_scalar("train.loss", loss, self.epoch + iteration / iterations)
                self.log.log_scalar("train.acc", accuracy, self.epoch + iteration / iterations)
        self.values.clear()
        self.positions.clear()
        return loss, accuracy


def train_global(
    model, loader, class_loss, optimizer, scheduler, epoch: int, ex=None, dtype=torch.float32, micro_batch=None
) -> None:
    """Epoch number `epoch` of `global_step`, logged to `ex`; in float16 with a gradient scaler of its own."""
    step = global_step(model, class_loss, dtype, micro_batch)
    train_epoch(TrainingState.new(model, optimizer, scheduler, dtype, epoch, criterion=class_loss), step, loader, ex)


def train_rerank(
    model,
    loader,
    class_loss,
    optimizer,
    scheduler,
    epoch: int,
    ex=None,
    dtype=torch.float32,
    micro_batch=None,
    embedded=False,
) -> None:
    """Epoch number `epoch` of `rerank_step`, logged to `ex`; in float16 with a gradient scaler of its own."""
    criterion = MeanOverPairs(class_loss)
    step = rerank_step(model, criterion, dtype, micro_batch, embedded)
    train_epoch(TrainingState.new(model, optimizer, scheduler, dtype, epoch, criterion=criterion), step, loader, ex)
