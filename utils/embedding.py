"""Descriptors and maps of all images of a loader, in one number format."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import DeviceError, InputError, ReportedError
from utils.features import DIMS, kept_features
from utils.memory import check_memory
from utils.processes import all_gather_rows, shard_slice, world_size
from utils.rows import StoredRows
from utils.signals import raise_pending_signal

GLOBAL, LOCAL = range(2)  # what a network answers for an image
# Images of 224 x 224 that are embedded at a time. On two CPU cores with 1 MiB of second-level cache each, 16 were as
# fast as 8, while 2, 4 and 64 took 21, 9 and 14 % longer. Not tuned on a GPU.
IMAGES_AT_ONCE = {"cpu": 8, "cuda": 1000}
FULL_GPU = re.compile("CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")  # in what torch says
FAILED_GPU = re.compile("CUDA error|cuDNN error|CUBLAS_STATUS")
NO_SHARED_MEMORY = re.compile("shared memory|unable to write to file </torch")
SILENT_WORKERS = re.compile("DataLoader timed out")
TOO_MANY_FILES = re.compile("Too many open files|ancillary data")  # the latter where it hits the receiver


def embed(
    model, loader, outputs: Sequence[int], title: str, dtype: torch.dtype, folder: str | None
) -> tuple[Sequence[Tensor | StoredRows], Tensor]:
    """The `GLOBAL` descriptors, the `LOCAL` maps or both of a loader's images, and their labels; maps stay on the CPU.

    Where they are kept in a folder, both kinds are taken in one pass, and maps stay there. InputError for answers that
    are not finite.
    """
    model.eval()
    device = device_of(model)
    if folder is not None:

        def embed_from(start: int) -> Iterator[Sequence[Tensor]]:
            return (parts for parts, _ in _embedded(model.embedder(dtype), loader, title, device, start))

        names = [list(DIMS)[output] for output in outputs]
        kept = kept_features(folder, model, loader.dataset, dtype, names, embed_from)
        if kept is not None:
            features = [
                part.to(device) if output == GLOBAL else part for output, part in zip(outputs, kept, strict=True)
            ]
            return features, torch.from_numpy(loader.dataset.labels)
    embedder = model.embedder(dtype)

    def embed_images(images: Tensor) -> list[Tensor]:
        answers = embedder(images)
        return [answers[output] for output in outputs]

    return _embed_images(embed_images, loader, title, device)


def _check_finite(features: Tensor, start: int, images) -> None:
    """Raise InputError, naming the first photo, where a network's answers (B, ...) from image `start` on are not
    finite."""
    is_finite = features.flatten(1).isfinite().all(dim=1)
    if not is_finite.all():
        image = start + int(is_finite.int().argmin())
        name = images.paths[image] if hasattr(images, "paths") else f"number {image}"
        raise InputError(
            f"the network answers NaN or infinite numbers for photo {name}: set another precision than fp16, or "
            "take another checkpoint"
        )


def embed_views(model, loader, dtype: torch.dtype) -> Tensor:
    """The `layer4` maps (N, C, h, w) of a loader's N images as evaluation makes them, on the CPU."""
    embedder = model.embedder(dtype)
    (features,), _ = _embed_images(lambda images: (embedder.layer_features(images),), loader, "view", device_of(model))
    return features


def _embed_images(
    embed: Callable[[Tensor], Sequence[Tensor]], loader, title: str, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """What `embed` makes of all images, maps on the CPU, and their labels. Memory is taken once, with the first batch.

    Raises InputError for more than the machine's memory, and for answers that are not finite.
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
            labels.append(batch_labels.clone())  # a worker's own tensor keeps one of this process's files open
    return [feature[:start] for feature in features], torch.cat(labels)


def _embedded(
    embed: Callable[[Tensor], Sequence[Tensor]], loader, title: str, device: torch.device, start: int = 0
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What `embed` makes of a loader's batches, on the device, and their labels, from an image on.

    Of a job of several processes each embeds its share of a batch, and gets all.
    """
    images, in_micro_batches = loader.dataset, MicroBatches(embed, device)
    with (
        device_errors_as_input_errors("dataset.test_batch_size"),
        tqdm(total=len(images), initial=start, desc=f"Extracting {title} features", unit="image") as progress,
    ):
        for pixels, labels, _ in _from_image(loader, start):
            embedded = in_micro_batches(pixels.to(device, non_blocking=True))
            if world_size() > 1:
                rows = shard_slice(min(loader.batch_size, len(images) - start))
                own = rows.stop - rows.start
                embedded, labels = [all_gather_rows(part[:own]) for part in embedded], all_gather_rows(labels[:own])
            for part in embedded:
                _check_finite(part, start, images)
            yield embedded, labels
            start += len(labels)
            progress.update(len(labels))


def _from_image(loader, start: int):
    """A loader that gives the images from one on, and of a job of several processes this one's shares of batches.

    Of a share without an image it gives one, so that the process knows what answers are like.
    """
    if not start and world_size() == 1:
        return loader
    whole = range(start, len(loader.dataset))
    batches = [whole[first : first + loader.batch_size] for first in range(0, len(whole), loader.batch_size)]
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
    """An empty tensor for `world_size` rows like those of `part`; maps lie on the CPU."""
    advice = "set a lower precision, or fewer frozen_views where they are set"
    check_memory(count * part[0].nbytes, f"the features of {count} images", advice)
    return part.new_empty((count, *part.shape[1:]), device="cpu" if part.dim() == 4 else None)


class MicroBatches:
    """What `embed` makes of images (B, 3, H, W) on a device, a piece of them after another.

    A piece is as large as suits the device, and half as large from when memory runs out, down to one image.
    """

    def __init__(self, embed: Callable[[Tensor], Sequence[Tensor]], device: torch.device):
        self.embed, self.pixels = embed, IMAGES_AT_ONCE[device.type] * 224**2

    def __call__(self, images: Tensor) -> list[Tensor]:
        parts: list[Sequence[Tensor]] = []
        start, at_once = 0, max(1, self.pixels // images[0, 0].numel())
        while start < len(images):
            piece = images[start : start + at_once]
            try:
                parts.append(self.embed(piece))
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(piece) == 1:
                    raise
                at_once = len(piece) // 2
                self.pixels = at_once * images[0, 0].numel()
                continue
            start += at_once
        return [torch.cat(part) for part in zip(*parts, strict=True)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a GPU's memory is full, be it torch's or that of a library below it."""
    return isinstance(error, torch.OutOfMemoryError) or bool(FULL_GPU.search(str(error)))


@contextmanager
def device_errors_as_input_errors(setting: str) -> Iterator[None]:
    """Turn what torch raises for want of CUDA memory, shared memory or open files, and for a loader's worker that ends
    or is silent, into an InputError naming `setting`, and what it raises for a GPU that fails into a DeviceError."""
    try:
        yield
    except ReportedError:
        raise
    except (RuntimeError, OSError) as error:
        told = str(error)
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            reason = told.partition("\n")[0]
            raise InputError(f"CUDA is out of memory: lower {setting}, or free the device ({reason})") from error
        if TOO_MANY_FILES.search(told):
            raise InputError(
                "this process has as many files open as it may have, and the loader needs more: lower "
                "dataset.num_workers (0 uses none), or raise the limit (ulimit -n)"
            ) from error
        if SILENT_WORKERS.match(told):
            raise InputError(
                f"no batch has come from the loader's workers for timeout_minutes ({told}): where photos are read so "
                f"slowly raise it or lower {setting}, else look why workers hang, or set dataset.num_workers=0"
            ) from error
        if FAILED_GPU.search(told):
            raise DeviceError(
                f"the GPU has failed ({told.splitlines()[0]}): look at nvidia-smi and the system's log; a training "
                "goes on from its last.pt with continue_run=True"
            ) from error
        if NO_SHARED_MEMORY.search(told):
            raise InputError(
                "shared memory (/dev/shm) is too small for the loader: lower dataset.num_workers (0 uses none) or "
                f"{setting}, or enlarge it (docker run --shm-size=8g)"
            ) from error
        if "DataLoader worker" in told and isinstance(error, RuntimeError):
            raise_pending_signal()
            raise InputError(
                f"a worker of the loader was ended ({told}): where memory is short, lower dataset.num_workers or "
                f"{setting}"
            ) from error
        raise


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
