"""Descriptors and local maps kept on disk, so that a network embeds the same photos once."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.backends.cuda import matmul

from utils.distributed.collectives import broadcast_from_rank0
from utils.distributed.group import barrier
from utils.errors import InputError, listing
from utils.io.lock import exclusive_lock
from utils.runtime.ranks import is_main_process
from utils.store.array_file import StoredRows
from utils.store.store import Store

DIMS = {"descriptors": 2, "maps": 4}  # outputs of a network, and their dimensions for all images


def kept_features(
    folder: Path | str,
    model,
    images,
    dtype: torch.dtype,
    names: Sequence[str],
    embed: Callable[[int], Iterable[Sequence[Tensor]]],
) -> list[StoredRows] | None:
    """The tensors `names` of an image set, from the store of its list of photos in `folder`; missing rows are written.

    `embed(start)` yields batches of descriptors (B, d) and maps (B, d, h, w) from image `start` on. Rows are made anew,
    and the reason is printed, if the weights or settings of the network, sizes or times of the photos, the transform or
    the precision have changed. An interrupted embedding is continued after its last chunk. Returns None, with a line
    printed, if the store cannot be written, for instance because another process writes it. Rank 0 decides and writes.
    """
    made_with = {
        "network": _digest(model.fingerprint()),
        **images.fingerprint(),
        "precision": f"{dtype}, TF32 {matmul.fp32_precision == 'tf32'}, {next(model.parameters()).device.type}",
    }
    path = Path(folder) / f"features_{_digest([str(images.paths).encode()])[:12]}"
    store = Store(path, DIMS, len(images), made_with)
    with ExitStack() as stack:

        def begin() -> int | None:
            if store.count_valid_rows(names) == len(images):
                print(f"descriptors of {len(images)} images are taken from {path}")
                return len(images)
            try:
                stack.enter_context(exclusive_lock(path / ".lock", str(path), "the images are embedded without it"))
            except InputError as error:
                print(f"descriptors are not kept: {error}")
                return None
            store.load()  # another process may have written it meanwhile
            start = store.count_valid_rows(DIMS)
            _report(store, start)
            return start

        start = broadcast_from_rank0(begin)
        if start is None:
            return None
        if start < len(images):
            batches = embed(start)
            if is_main_process():
                store.write(start, batches)
            else:
                deque(batches, maxlen=0)  # takes part in the collectives
        barrier()
        if not is_main_process():
            store.load()
        already_verified = is_main_process() and start == len(images)
        if not already_verified and store.count_valid_rows(names) < len(images):
            raise InputError(
                f"{path} is not what was written there: choose a folder on another disk, which all machines see"
            )
    return [store.tensors[name] for name in names]


def _report(store: Store, start: int) -> None:
    """Print why the images from `start` on are embedded although there is a store."""
    if store.file.exists() and store.changed():
        print(f"{store.folder} does not fit, by its {listing(store.changed())}: the images are embedded again")
    elif start < store.rows:
        print(f"{store.folder} is damaged: the images are embedded again")
    elif start:
        print(f"{store.folder} has the first {start} of {store.count} images: embedding goes on from there")


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
