"""The engine of training: all that a run is, `fit`, one epoch, and the steps of the two trainings (paper, section 3).

`dtype` is the number format of matrix products and convolutions. Losses, and their gradients at what the network
answers, are computed in float32, without TF32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from utils.checkpoint import num_of_trainable_params, save_checkpoint
from utils.embedding import device_of, pieces_for, short_of_memory
from utils.errors import DivergedError, InputError
from utils.evaluation import evaluate_global, evaluate_rerank
from utils.precision import autocast, true_float32

__all__ = ["TrainingState", "evaluate_global", "evaluate_rerank", "fit", "train_global", "train_rerank"]

FETCH_EVERY = 20  # iterations between two looks at losses and accuracies: each waits for the device

Scale = Callable[[Tensor], Tensor]  # of a loss, before its gradient is taken: the scaler's
Step = Callable[[Tensor, Tensor, Scale], tuple[Tensor, Tensor]]  # images, labels -> loss, accuracy; fills the gradients


@dataclass
class TrainingState:
    """All that a training run is, besides its data and its settings."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler  # of float16's losses; idle in other formats
    epoch: int = 0  # epochs trained: the number of the one that comes next
    iteration: int = 0  # iterations trained of that one
    best: float | None = None  # the highest R@1 of a validation so far

    @classmethod
    def new(cls, model, optimizer, scheduler, dtype: torch.dtype, epoch: int = 0) -> "TrainingState":
        scaler = torch.amp.GradScaler(device_of(model).type, enabled=dtype == torch.float16)
        """The state before `epoch`."""
        return cls(model, optimizer, scheduler, scaler, epoch)


def fit(
    state: TrainingState,
    step: Step,
    loader,
    validate: Callable[[], tuple],
    epochs: int,
    log,
    report: Callable[[dict[int, float], int, str, bool], None],
    checkpoint: Path,
    autotune: bool,
) -> float:
    """Validate, then train and validate until `epochs` are trained; returns the best R@1.

    `validate()` returns what the metric functions do. `log.log_scalar(name, value, step)` takes train.loss, train.acc
    and val.recall@K, the latter at the number of epochs trained; `report(recalls, columns, title, improved)` tells each
    validation. Whenever R@1 is not below the best so far, the states are saved as `checkpoint`. `autotune` has cuDNN
    try its algorithms while training.
    """
    print(f"trainable parameters: {num_of_trainable_params(state.model):,}")
    while True:
        cudnn.benchmark = False
        recalls, _, positions = validate()
        for k, recall in recalls.items():
            log.log_scalar(f"val.recall@{k}", recall, state.epoch)
        improved = state.best is None or recalls[1] >= state.best
        title = f"Validation [{state.epoch - 1:03d}] " if state.epoch else "Validation before training "
        report(recalls, positions.shape[1], title, improved)
        if improved:
            state.best = recalls[1]
            save_checkpoint(checkpoint, state.model, state.optimizer, state.scheduler)
        if state.epoch >= epochs:
            return state.best  # type: ignore[return-value]
        cudnn.benchmark = autotune
        train_epoch(state, step, loader, log)


def train_epoch(state: TrainingState, step: Step, loader, log=None) -> None:
    """One epoch of steps; steps the scheduler at its end.

    `loader` yields images (B, 3, H, W), or what becomes such on the device, labels (B,) and positions (B,). Iteration i
    is logged at epoch + i / len(loader). Raises DivergedError for a loss that is not finite.
    """
    model, optimizer, scaler = state.model.train(), state.optimizer, state.scaler
    sampler: Any = getattr(loader, "batch_sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(state.epoch)
    device, scalars = device_of(model), PendingScalars(log, state.epoch)
    with (
        short_of_memory("dataset.batch_size or set micro_batch"),
        tqdm(loader, desc=f"Training   [{state.epoch:03d}]", unit="batch") as progress,
    ):
        for images, labels, positions in progress:
            optimizer.zero_grad()
            batch = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss, accuracy = step(*batch, scaler.scale)
            scaler.step(optimizer)
            scaler.update()
            scalars.add(loss, accuracy, positions)
            state.iteration += 1
            if state.iteration % FETCH_EVERY == 0 or state.iteration == len(loader):
                loss_value, accuracy_value = scalars.fetch(state.iteration, len(loader))
                rate = optimizer.param_groups[0]["lr"]
                progress.set_postfix(loss=f"{loss_value:.4f}", acc=f"{accuracy_value:.4f}", lr=f"{rate:.1e}")
    state.scheduler.step()
    state.epoch, state.iteration = state.epoch + 1, 0


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
        """Log those of the iterations before `end`, of so many in the epoch; the last ones.

        Raises DivergedError for a loss that is not finite.
        """
        start, rows = end - len(self.values), torch.stack(self.values).tolist()
        for iteration, (loss, accuracy), positions in zip(range(start, end), rows, self.positions, strict=True):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss is {loss} at epoch {self.epoch}, iteration {iteration}, of the training images "
                    f"{positions.tolist()}: training stops; lower lr, or look at these photos"
                )
            if self.log is not None:
                self.log.log_scalar("train.loss", loss, self.epoch + iteration / iterations)
                self.log.log_scalar("train.acc", accuracy, self.epoch + iteration / iterations)
        self.values.clear()
        self.positions.clear()
        return loss, accuracy


def global_step(model, class_loss, dtype: torch.dtype = torch.float32, micro_batch: int | None = None) -> Step:
    """A step of the contrastive loss on global descriptors; its accuracy is the classifier's.

    With `micro_batch` the network holds as many images at a time, and the gradient is the whole batch's.
    """
    _check_micro_batch(model, micro_batch)

    def embed(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, dtype):
            logits, descriptors, _ = model(images)
        return logits.float(), descriptors.float()

    def step(images: Tensor, labels: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        def loss_of(logits: Tensor, descriptors: Tensor) -> Tensor:
            return class_loss(logits, descriptors, labels)

        loss, logits = in_two_passes(embed, images, micro_batch, loss_of, scale)
        return loss, (logits.argmax(dim=1) == labels).float().mean()

    return step


def in_two_passes(
    embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    micro_batch: int | None,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    scale: Scale,
) -> tuple[Tensor, Tensor]:
    """The loss of a whole batch, and its logits, while the network holds `micro_batch` images at a time.

    The loss compares the descriptors of all images. So the first pass embeds them all, piece by piece and without a
    graph, and the loss gives the gradient at each descriptor. The second pass embeds each piece again, and takes these
    gradients on to the weights. A batch of one piece keeps its graph in place of the second pass.
    """
    pieces = images.split(micro_batch or len(images))
    whole = len(pieces) == 1
    with torch.set_grad_enabled(whole):
        outputs = [embed(piece) for piece in pieces]
    logits, descriptors = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    answers = descriptors.detach().requires_grad_()
    with true_float32():
        loss = loss_of(logits, answers)
        scale(loss).backward()
    assert answers.grad is not None
    if whole:
        descriptors.backward(answers.grad)
    else:
        for piece, gradient in zip(pieces, answers.grad.split(len(pieces[0])), strict=True):
            embed(piece)[1].backward(gradient)
    return loss, logits


def rerank_step(
    model, class_loss, dtype: torch.dtype = torch.float32, micro_batch: int | None = None, embedded: bool = False
) -> Step:
    """A step of the matcher on triplets (paper, section 3.3); its accuracy is that at threshold 0.5.

    A batch is laid out anchor, positive, negative, anchor, ... Each image is embedded once; (anchor, positive) has
    target 1 and (anchor, negative) target 0. With `micro_batch`, a multiple of 3, gradients are summed over pieces of
    so many images. `embedded` batches hold `layer4` maps in place of images.
    """
    if micro_batch is not None and micro_batch % 3:
        raise InputError(f"micro_batch={micro_batch} is no multiple of 3, but a triplet stays together")
    _check_micro_batch(model, micro_batch)
    features_of = batch_features(model, dtype, embedded)

    def step(images: Tensor, labels: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        loss, accuracy = torch.zeros(2, device=images.device)
        for piece in images.split(micro_batch or len(images)):
            features = features_of(piece)
            with autocast(images.device, dtype):
                local = model.remap_local(features)
                anchors, positives, negatives = (local[role::3] for role in range(3))
                logits = model.matcher(None, torch.cat((anchors, anchors)), None, torch.cat((positives, negatives)))
            targets = torch.cat((logits.new_ones(len(positives)), logits.new_zeros(len(negatives))))
            share = len(piece) / len(images)
            piece_loss = class_loss(logits, None, targets).mean() * share
            scale(piece_loss).backward()
            loss += piece_loss.detach()
            accuracy += ((logits.detach() > 0) == (targets > 0)).float().mean() * share
        return loss, accuracy

    return step


def batch_features(model, dtype: torch.dtype, embedded: bool) -> Callable[[Tensor], Tensor]:
    """What makes `layer4` maps (B, C, h, w) of a batch: nothing where it holds such, a frozen trunk as it embeds for
    evaluation, or the trunk with gradients."""
    if embedded:
        return lambda maps: maps
    if model.freeze_backbone:
        frozen = model.embedder(dtype)
        return lambda images: torch.cat([frozen.layer_features(piece) for piece in pieces_for(images, images.device)])

    def by_trunk(images: Tensor) -> Tensor:
        with autocast(images.device, dtype):
            return model.layer_features(images)

    return by_trunk


def train_global(
    model, loader, class_loss, optimizer, scheduler, epoch: int, ex=None, dtype=torch.float32, micro_batch=None
) -> None:
    """One epoch, number `epoch`, of `global_step`, logged to `ex`."""
    step = global_step(model, class_loss, dtype, micro_batch)
    train_epoch(TrainingState.new(model, optimizer, scheduler, dtype, epoch), step, loader, ex)


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
    """One epoch, number `epoch`, of `rerank_step`, logged to `ex`."""
    step = rerank_step(model, class_loss, dtype, micro_batch, embedded)
    train_epoch(TrainingState.new(model, optimizer, scheduler, dtype, epoch), step, loader, ex)


def parameter_groups(model: nn.Module, no_bias_decay: bool) -> list[dict]:
    """All parameters, frozen ones too; with `no_bias_decay` the one-dimensional ones apart, without weight decay."""
    if not no_bias_decay:
        return [{"params": list(model.parameters())}]
    return [
        {"params": [parameter for parameter in model.parameters() if parameter.dim() != 1]},
        {"params": [parameter for parameter in model.parameters() if parameter.dim() == 1], "weight_decay": 0.0},
    ]


def _check_micro_batch(model, micro_batch: int | None) -> None:
    """InputError where pieces of a batch would not answer as the whole."""
    if micro_batch is not None and any(_mixes_images(module) for module in model.train().modules()):
        raise InputError(
            f"micro_batch={micro_batch} needs each image to be embedded by itself and alike every time: set "
            "model.set_bn_eval=True, and neither model.norm_layer='batch' nor dropout"
        )


def _mixes_images(module: nn.Module) -> bool:
    """Whether a module in training mode makes an image's output depend on the other images or on chance."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.training
