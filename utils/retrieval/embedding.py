"""Global descriptors and local feature maps of all images of a loader."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from utils.distributed.collectives import all_gather_rows, shard_slice
from utils.distributed.group import world_size
from utils.errors import InputError
from utils.runtime.device import MicroBatches, device_errors_as_input_errors, device_of
from utils.runtime.memory import check_memory
from utils.store.array_file import StoredRows
from utils.store.feature_cache import DIMS, kept_features

GLOBAL, LOCAL = range(2)  # outputs of the network for an image


def embed(
    model, loader, outputs: Sequence[int], title: str, dtype: torch.dtype, folder: str | None
) -> tuple[Sequence[Tensor | StoredRows], Tensor]:
    """The `GLOBAL` descriptors, the `LOCAL` feature maps or both of a loader's images, and their labels.

    Feature maps are on the CPU. With a cache `folder`, both outputs are computed in one pass and stored there, and
    feature maps stay in their file. InputError for outputs that are not finite.
    """
    model.eval()
    device = device_of(model)
    if folder is not None:

        def embed_from(start: int) -> Iterator[Sequence[Tensor]]:
            return (parts for parts, _ in _embedded(model.embedder(dtype), loader, title, device, start))

        names = [list(DIMS)[output] for output in outputs]
        cached = kept_features(folder, model, loader.dataset, dtype, names, embed_from)
        if cached is not None:
            features = [
                part.to(device) if output == GLOBAL else part for output, part in zip(outputs, cached, strict=True)
            ]
            return features, torch.from_numpy(loader.dataset.labels)
    embedder = model.embedder(dtype)

    def embed_images(images: Tensor) -> list[Tensor]:
        features = embedder(images)
        return [features[output] for output in outputs]

    return _embed_images(embed_images, loader, title, device)


def _check_finite(features: Tensor, start: int, images) -> None:
    """Raise InputError, naming the first photo, if outputs (B, ...) for images `start` and on are not finite."""
    is_finite = features.flatten(1).isfinite().all(dim=1)
    if not is_finite.all():
        image = start + int(is_finite.int().argmin())
        name = images.paths[image] if hasattr(images, "paths") else f"number {image}"
        raise InputError(
            f"the network answers NaN or infinite numbers for photo {name}: set another precision than fp16, or "
            "take another checkpoint"
        )


def embed_views(model, loader, dtype: torch.dtype) -> Tensor:
    """The `layer4` feature maps (N, C, h, w) of a loader's N images as evaluation computes them, on the CPU."""
    embedder = model.embedder(dtype)
    (features,), _ = _embed_images(lambda images: (embedder.layer_features(images),), loader, "view", device_of(model))
    return features


def _embed_images(
    embed: Callable[[Tensor], Sequence[Tensor]], loader, title: str, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Apply `embed` to all images; returns the outputs, feature maps on the CPU, and the labels.

    Memory is allocated once, with the first batch. InputError if it exceeds the machine's, and for outputs that are
    not finite.
    """
    labels = []
    features: list[Tensor] = []
    start = 0
    with device_errors_as_input_errors("dataset.test_batch_size"):
        for embedded, batch_labels in _embedded(embed, loader, title, device):
            if not start:
                features = [_allocate(len(loader.dataset), part) for part in embedded]
            for feature, part in zip(features, embedded, strict=True):
                feature[start : start + len(part)] = part
            start += len(batch_labels)
            labels.append(batch_labels.clone())  # a tensor of a worker keeps a file of this process open
    return [feature[:start] for feature in features], torch.cat(labels)


def _embedded(
    embed: Callable[[Tensor], Sequence[Tensor]], loader, title: str, device: torch.device, start: int = 0
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Apply `embed` to a loader's batches from image `start` on; yields outputs, on the device, and labels.

    Each rank embeds its shard of a batch, and yields the whole batch.
    """
    images, in_micro_batches = loader.dataset, MicroBatches(embed, device)
    with (
        device_errors_as_input_errors("dataset.test_batch_size"),
        tqdm(total=len(images), initial=start, desc=f"Extracting {title} features", unit="image") as progress,
    ):
        for pixels, labels, _ in _local_loader(loader, start):
            embedded = in_micro_batches(pixels.to(device, non_blocking=True))
            if world_size() > 1:
                rows = shard_slice(min(loader.batch_size, len(images) - start))
                m = rows.stop - rows.start
                embedded, labels = [all_gather_rows(part[:m]) for part in embedded], all_gather_rows(labels[:m])
            for part in embedded:
                _check_finite(part, start, images)
            yield embedded, labels
            start += len(labels)
            progress.update(len(labels))


def _local_loader(loader, start: int):
    """A loader of this rank's shards of the batches from image `start` on.

    An empty shard is replaced by one image, so that the rank knows the shapes of outputs.
    """
    if not start and world_size() == 1:
        return loader
    images = range(start, len(loader.dataset))
    batches = [images[i : i + loader.batch_size] for i in range(0, len(images), loader.batch_size)]
    return type(loader)(
        loader.dataset,
        batch_sampler=[batch[shard_slice(len(batch))] or batch[:1] for batch in batches],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )


def _allocate(count: int, part: Tensor) -> Tensor:
    """An empty tensor of `count` rows like those of `part`; feature maps are allocated on the CPU."""
    advice = "set a lower precision, or fewer frozen_views where they are set"
    check_memory(count * part[0].nbytes, f"the features of {count} images", advice)
    return part.new_empty((count, *part.shape[1:]), device="cpu" if part.dim() == 4 else None)
