"""The steps of the two trainings: a batch's loss, its accuracy, and its gradient at the weights (paper, section 3).

`dtype` is the number format of matrix products and convolutions. A loss, and its gradient with respect
to its inputs, is computed in float32, without TF32.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from utils.distributed.collectives import all_gather_rows, all_reduce_int, all_reduce_sum, local_rows
from utils.distributed.group import world_size
from utils.errors import InputError, listing
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.pair_scoring import Scorer
from utils.runtime.device import MicroBatches, device_of
from utils.runtime.precision import autocast, true_float32
from utils.runtime.ranks import is_main_process
from utils.training.losses import CHAMFER, LOGIT, accuracy_at_zero

# nn.Dropout's kin and torchvision's StochasticDepth; timm's DropPath; nn.MultiheadAttention; whole networks
DROP_RATES = ("p", "drop_prob", "dropout", "drop_rate")
Scale = Callable[[Tensor], Tensor]  # multiplies a loss by the gradient scaler's factor
Step = Callable[[Tensor, Tensor, Scale], tuple[Tensor, Tensor]]  # images, labels -> loss, accuracy; fills the gradients


def global_step(
    model, criterion, dtype: torch.dtype = torch.float32, micro_batch: int | None = None, batch_size: int | None = None
) -> Step:
    """A step of a loss on global descriptors; its accuracy is the classifier's.

    `criterion(logits, descriptors, labels)` is given (B, classes), (B, d) and (B,) of the whole batch. InputError where
    batches of `batch_size` images, or pieces of them, cannot be trained on.

    With `micro_batch` the network holds as many images at a time, and the gradient is the whole batch's. Of a job of
    several processes each has its share of the batch: the loss is of all, the gradient what this share contributes.
    Weights of the criterion get their gradient in the first process.
    """
    _check_micro_batching(model, micro_batch, batch_size)

    def embed(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, dtype):
            logits, descriptors, _ = model(images)
        return logits.float(), descriptors.float()

    def step(images: Tensor, labels: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        loss, logits = backward_with_gradient_cache(embed, criterion, images, labels, micro_batch, scale)
        return loss, all_reduce_sum((logits.argmax(dim=1) == labels).float().sum()) / all_reduce_int(len(labels))

    return step


def backward_with_gradient_cache(
    embed: Callable[[Tensor], tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    micro_batch: int | None,
    scale: Scale,
) -> tuple[Tensor, Tensor]:
    """The loss of a whole batch, and these images' logits, while the network holds `micro_batch` images at a time.

    The loss compares the descriptors of all images. So the first pass embeds them all, piece by piece and without a
    graph, and the loss gives the gradient at each descriptor and logit. The second pass embeds each piece again, and
    takes these gradients on to the weights. A batch of one piece keeps its graph in place of the second pass.

    Of a job of several processes each embeds its share, and the loss sees what all have embedded.
    """
    pieces = images.split(micro_batch or max(len(images), 1))
    is_one_piece = len(pieces) == 1
    with torch.set_grad_enabled(is_one_piece):
        outputs = [embed(piece) for piece in pieces]
    own = [torch.cat(parts).detach() for parts in zip(*outputs, strict=True)]
    logits, descriptors = (all_gather_rows(part).requires_grad_() for part in own)
    with true_float32():
        loss = criterion(logits, descriptors, all_gather_rows(labels))
        scale(loss).backward()
    if world_size() > 1 and not is_main_process() and isinstance(criterion, nn.Module):
        criterion.zero_grad()  # each process has the whole batch's gradient of these weights: it counts once
    own_rows = local_rows(len(images))
    gradients = [None if whole.grad is None else whole.grad[own_rows] for whole in (logits, descriptors)]
    start = 0
    for piece, first_pass in zip(pieces, outputs, strict=True):
        rows = slice(start, start := start + len(piece))
        for_weights = [
            (output, gradient[rows])
            for output, gradient in zip(first_pass if is_one_piece else embed(piece), gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        torch.autograd.backward(*map(list, zip(*for_weights, strict=True)))  # type: ignore[arg-type]
    return loss, own[0]


def rerank_step(
    model,
    criterion,
    dtype: torch.dtype = torch.float32,
    micro_batch: int | None = None,
    embedded: bool = False,
    num_negatives: int = 1,
) -> Step:
    """A step on triplets (paper, section 3.3): the losses of one score of their pairs, or of several, are summed.

    A batch is laid out anchor, positive, negatives, anchor, ... Each image is embedded once. `criterion` judges the
    matcher's logits; a ModuleDict holds criteria of the "logit", of "chamfer", the similarity of the local maps, or of
    both. Each is called as `criterion(positive_scores, negative_scores)`, of (anchor, positive) and (anchor, negative)
    of some anchors: (M,), or negatives (M, n) where an anchor has n > 1. It returns a mean over the anchors. Accuracy
    is the first one's, at a score of 0 unless it says its own.

    With `micro_batch`, a multiple of an anchor's images, gradients are summed over pieces of so many images. `embedded`
    batches hold `layer4` maps in place of images. Of a job of several processes each has its share of the batch: loss
    and accuracy are of all, the gradient what this share contributes.
    """
    group = 2 + num_negatives
    if micro_batch is not None and micro_batch % group:
        whole = "a triplet stays" if num_negatives == 1 else "an anchor, its positive and its negatives stay"
        raise InputError(f"micro_batch={micro_batch} is no multiple of {group}, but {whole} together")
    _check_micro_batching(model, micro_batch)
    features_of = batch_features(model, dtype, embedded)
    criteria = _criteria_by_score(criterion)
    accuracy_of = getattr(next(iter(criteria.values())), "accuracy", accuracy_at_zero)

    def step(images: Tensor, labels: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        loss, accuracy = torch.zeros(2, device=images.device)
        size = all_reduce_int(len(images))
        scale(loss)  # for a process without a triplet: the scaler wants to have seen a loss
        for piece in images.split(micro_batch or len(images)) if len(images) else ():
            features = features_of(piece)
            with autocast(images.device, dtype):
                local = model.remap_local(features)
                outputs = [local if name == CHAMFER else _score_pairs(model.matcher, local, group) for name in criteria]
            judged = [output.detach().float().requires_grad_() for output in outputs]
            share = len(piece) / size
            with true_float32():
                scores = [_scores_of(*each, group) for each in zip(criteria, judged, strict=True)]
                losses = [judge(*each) for judge, each in zip(criteria.values(), scores, strict=True)]
                piece_loss = torch.stack(losses).sum() * share
                scale(piece_loss).backward()
            _backward_from(outputs, judged)
            loss += piece_loss.detach()
            with torch.no_grad():
                accuracy += accuracy_of(*scores[0]) * share
        loss, accuracy = all_reduce_sum(torch.stack((loss, accuracy)))
        return loss, accuracy

    return step


def _backward_from(outputs: Sequence[Tensor], judged: Sequence[Tensor]) -> None:
    """Take the gradients at what a loss has judged, detached outputs of the network, on to the weights."""
    trained = [(output, part.grad) for output, part in zip(outputs, judged, strict=True) if output.requires_grad]
    gradients = [gradient.to(output.dtype) for output, gradient in trained]  # type: ignore[union-attr]
    torch.autograd.backward([output for output, _ in trained], gradients)


def _criteria_by_score(criterion) -> Mapping[str, Callable[..., Tensor]]:
    """The criteria of a step by the names of the scores that they judge; ValueError for an unknown score."""
    criteria = criterion if isinstance(criterion, nn.ModuleDict) else {LOGIT: criterion}
    if unknown := set(criteria) - {LOGIT, CHAMFER}:
        raise ValueError(f"{listing(unknown)} is no score of pairs: choose from {listing((LOGIT, CHAMFER))}")
    return criteria  # type: ignore[return-value]


def _scores_of(name: str, output: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Scores (M,) of positives, and of negatives (M,), or (M, n) of n > 1 an anchor: the output is theirs, or the local
    maps of the Chamfer similarity, which has no weights, and is computed as a loss is."""
    scores = _score_pairs(Chamfer(), output, group) if name == CHAMFER else output
    positives, *negatives = scores.chunk(group - 1)
    return positives, negatives[0] if group == 3 else torch.stack(negatives, dim=1)


def _score_pairs(scorer: Scorer, local: Tensor, group: int) -> Tensor:
    """Scores of all anchors with their positives, then with their first negatives, and so on."""
    anchors, *others = (local[role::group] for role in range(group))
    queries, candidates = torch.cat([anchors] * len(others)), torch.cat(others)
    return scorer.score(scorer.encode_queries(queries), scorer.encode_candidates(candidates))


def batch_features(model, dtype: torch.dtype, embedded: bool) -> Callable[[Tensor], Tensor]:
    """What makes `layer4` maps (B, C, h, w) of a batch: nothing where it holds such, a frozen backbone as it embeds
    for evaluation, or the backbone with gradients."""
    if embedded:
        return lambda maps: maps
    if model.freeze_backbone:
        frozen = model.embedder(dtype)
        in_micro_batches = MicroBatches(lambda images: (frozen.layer_features(images),), device_of(model))
        return lambda images: in_micro_batches(images)[0]

    def by_backbone(images: Tensor) -> Tensor:
        with autocast(images.device, dtype):
            return model.layer_features(images)

    return by_backbone


def is_stochastic(module: nn.Module) -> bool:
    """Whether a module itself draws random numbers while training: `DROP_RATES` tell, and RReLU's range."""
    rates = (getattr(module, name, 0) for name in DROP_RATES)
    drops = any(isinstance(rate, int | float) and 0 < rate <= 1 for rate in rates)
    return drops or (isinstance(module, nn.RReLU) and module.upper > module.lower)


def _check_micro_batching(model, micro_batch: int | None, batch_size: int | None = None) -> None:
    """InputError where pieces of a batch, or processes' shares, would not answer, while training, as the whole, and
    where batches are of one image, which a batch norm cannot compare with others."""
    if micro_batch is None and world_size() == 1 and batch_size != 1:
        return
    was_training = model.training
    modules = list(model.train().modules())
    uses_batch_statistics = any(
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.training for module in modules
    )
    model.train(was_training)
    if micro_batch is not None and (uses_batch_statistics or any(map(is_stochastic, modules))):
        raise InputError(
            f"micro_batch={micro_batch} needs each image to be embedded by itself and alike every time: set "
            "model.set_bn_eval=True, and neither model.norm_layer='batch' nor dropout"
        )
    if uses_batch_statistics and batch_size == 1:
        raise InputError(
            "dataset.batch_size=1, but batch norms in training mode need several images: give more, or set "
            "model.set_bn_eval=True, and not model.norm_layer='batch'"
        )
    if uses_batch_statistics:
        raise InputError(
            f"batch norms in training mode would see the images of one of {world_size()} processes alone: set "
            "model.set_bn_eval=True, and not model.norm_layer='batch'"
        )
