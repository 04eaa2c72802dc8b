"""One epoch of training and one evaluation, for global descriptors and for reranking.

`dtype` is the number format of matrix products and convolutions; losses are computed in float32.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.embedding import device_of, embed, pieces_for, short_of_memory
from utils.errors import InputError
from utils.knn import EXACT
from utils.metrics import recall_at_ks, recall_at_ks_rerank
from utils.precision import autocast

FETCH_EVERY = 20  # iterations between two looks at losses and accuracies: each waits for the device


def train_global(
    model, loader, class_loss, optimizer, scheduler, epoch: int, ex=None, dtype=torch.float32, micro_batch=None
) -> None:
    """One epoch of the contrastive loss on global descriptors; `train.acc` is the classifier's accuracy.

    `loader` yields images (B, 3, H, W), labels (B,) and positions (B,). Steps the scheduler at its end. With
    `micro_batch` the network holds as many images at a time: the batch is embedded without a graph, the loss gives each
    descriptor's gradient, and a second pass in pieces takes it on to the weights.
    """

    def step(images: Tensor, labels: Tensor, backward: Callable[[Tensor], None]) -> tuple[Tensor, Tensor]:
        pieces = images.split(micro_batch or len(images))
        with autocast(images.device, dtype), torch.set_grad_enabled(len(pieces) == 1):
            outputs = [model(piece)[:2] for piece in pieces]
        logits, descriptors = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        if len(pieces) > 1:
            descriptors.requires_grad_()
        loss = class_loss(logits, descriptors, labels)
        backward(loss)
        if descriptors.is_leaf and descriptors.grad is not None:
            for piece, gradient in zip(pieces, descriptors.grad.split(micro_batch), strict=True):
                with autocast(images.device, dtype):
                    again = model(piece)[1]
                again.backward(gradient.to(again.dtype))
        return loss, (logits.argmax(dim=1) == labels).float().mean()

    _train_epoch(model, loader, step, optimizer, scheduler, epoch, ex, dtype, micro_batch)


def train_rerank(
    model, loader, class_loss, optimizer, scheduler, epoch: int, ex=None, dtype=torch.float32, micro_batch=None
) -> None:
    """One epoch of the matcher on triplets (paper, section 3.3); `train.acc` is its accuracy at threshold 0.5.

    `loader` yields batches laid out anchor, positive, negative, anchor, ... Each image is embedded once; (anchor,
    positive) has target 1 and (anchor, negative) target 0. Steps the scheduler at its end. With `micro_batch`, a
    multiple of 3, gradients are summed over pieces of as many images. A frozen trunk embeds as in evaluation; a loader
    that is `embedded` yields its maps in place of images.
    """
    if micro_batch is not None and micro_batch % 3:
        raise InputError(f"micro_batch={micro_batch} is no multiple of 3, but a triplet stays together")

    frozen = model.embedder(dtype) if model.freeze_backbone and not getattr(loader, "embedded", False) else None

    def step(images: Tensor, labels: Tensor, backward: Callable[[Tensor], None]) -> tuple[Tensor, Tensor]:
        loss, accuracy = torch.zeros((), device=images.device), torch.zeros((), device=images.device)
        for piece in images.split(micro_batch or len(images)):
            if frozen is not None:
                piece = torch.cat([frozen.layer_features(few) for few in pieces_for(piece, piece.device)])
            with autocast(images.device, dtype):
                local = model.remap_local(piece if model.freeze_backbone else model.layer_features(piece))
                anchors, positives, negatives = (local[role::3] for role in range(3))
                logits = model.matcher(None, torch.cat((anchors, anchors)), None, torch.cat((positives, negatives)))
            targets = torch.cat((logits.new_ones(len(positives)), logits.new_zeros(len(negatives))))
            share = len(piece) / len(images)
            piece_loss = class_loss(logits, None, targets).mean() * share
            backward(piece_loss)
            loss += piece_loss.detach()
            accuracy += ((logits.detach() > 0) == (targets > 0)).float().mean() * share
        return loss, accuracy

    _train_epoch(model, loader, step, optimizer, scheduler, epoch, ex, dtype, micro_batch)


def _train_epoch(model, loader, step: Callable, optimizer, scheduler, epoch: int, ex, dtype, micro_batch) -> None:
    model.train()
    if micro_batch is not None and any(_mixes_images(module) for module in model.modules()):
        raise InputError(
            f"micro_batch={micro_batch} needs each image to be embedded by itself and alike every time: set "
            "model.set_bn_eval=True, and neither model.norm_layer='batch' nor dropout"
        )
    if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
        loader.batch_sampler.set_epoch(epoch)
    device, pending, shown = device_of(model), [], []
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()

    with (
        short_of_memory("dataset.batch_size or set micro_batch"),
        tqdm(loader, desc=f"Training   [{epoch:03d}]", unit="batch") as progress,
    ):
        for i, (images, labels, positions) in enumerate(progress):
            optimizer.zero_grad()
            batch = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss, accuracy = step(*batch, backward)
            scaler.step(optimizer)
            scaler.update()
            pending.append(torch.stack((loss.detach(), accuracy)))
            shown.append(positions)
            if (i + 1) % FETCH_EVERY == 0 or i + 1 == len(loader):
                values = torch.stack(pending).tolist()
                for j, (loss_value, accuracy_value) in enumerate(values, start=i + 1 - len(values)):
                    if not math.isfinite(loss_value):
                        raise InputError(
                            f"the loss is {loss_value} at epoch {epoch}, iteration {j}, of the training images "
                            f"{shown[j - i - 1].tolist()}: training stops; lower lr, or look at these photos"
                        )
                    if ex is not None:
                        ex.log_scalar("train.loss", loss_value, epoch + j / len(loader))
                        ex.log_scalar("train.acc", accuracy_value, epoch + j / len(loader))
                pending.clear()
                shown.clear()
                rate = optimizer.param_groups[0]["lr"]
                progress.set_postfix(loss=f"{loss_value:.4f}", acc=f"{accuracy_value:.4f}", lr=f"{rate:.1e}")
    scheduler.step()


def evaluate_global(
    model,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    knn_index: str = EXACT,
    features: str | None = None,
):
    """`recall_at_ks` of the images' normalised global descriptors; `gallery_loader` None: among themselves.

    With a folder `features`, descriptors are kept there for later evaluations (`utils.features`).
    """
    query_features, query_labels = embed(model, query_loader, 0, "query", dtype, features)
    gallery = (None, None) if gallery_loader is None else embed(model, gallery_loader, 0, "gallery", dtype, features)
    return recall_at_ks(query_features, query_labels, recall_ks, gallery[0], gallery[1], True, knn_index)


def evaluate_rerank(
    model,
    cache_nn_inds: Tensor,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    features: str | None = None,
):
    """`recall_at_ks_rerank` of the images' local maps; `gallery_loader` and `features` as for `evaluate_global`."""
    query_maps, query_labels = embed(model, query_loader, 1, "query", dtype, features)
    gallery = (None, None) if gallery_loader is None else embed(model, gallery_loader, 1, "gallery", dtype, features)
    return recall_at_ks_rerank(query_maps, query_labels, recall_ks, model, cache_nn_inds, *gallery)


def _mixes_images(module: nn.Module) -> bool:
    """Whether a module in training mode makes an image's output depend on the other images or on chance."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.training


def parameter_groups(model: nn.Module, no_bias_decay: bool) -> list[dict]:
    """All parameters, frozen ones too; with `no_bias_decay` the one-dimensional ones apart, without weight decay."""
    if not no_bias_decay:
        return [{"params": list(model.parameters())}]
    return [
        {"params": [parameter for parameter in model.parameters() if parameter.dim() != 1]},
        {"params": [parameter for parameter in model.parameters() if parameter.dim() == 1], "weight_decay": 0.0},
    ]
