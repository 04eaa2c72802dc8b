"""Descriptors kept on disk: a second evaluation of the same network on the same photos does not embed them again."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from utils.checkpoint import save_tensors
from utils.errors import InputError, listing
from utils.files import check_stored_zip, open_file

NO_PART = ("matcher.", "classifier.")  # tensors that descriptors do not depend on


def kept_features(
    folder: Path | str, model, images, dtype: torch.dtype, embed: Callable[[], list[Tensor]]
) -> list[Tensor]:
    """What `embed()` returns for an image set, from `folder` if it lies there, or kept there for the next time.

    There is one file for each list of photos, read memory-mapped. It is made anew where the network's weights or
    settings, the photos' sizes or times, their transform or the precision are others; one line says which. A file that
    cannot be written is reported, and the evaluation goes on.
    """
    made_with = {
        "network": _digest(_network(model)),
        **images.made_from(),
        "precision": f"{dtype}, TF32 {torch.backends.cuda.matmul.allow_tf32}, {next(model.parameters()).device.type}",
    }
    path = Path(folder) / f"features_{_digest([str(images.paths).encode()])[:12]}.pt"
    if path.exists():
        content = _read(path)
        changed = [name for name, value in made_with.items() if content.get(name) != value]
        if not changed and not _are_features(content.get("features"), len(images)):
            changed = ["features"]
        if not changed:
            print(f"descriptors of {len(images)} images are taken from {path}")
            return content["features"]
        print(f"{path} does not fit, by its {listing(changed)}: the images are embedded again")
    features = embed()
    try:
        save_tensors(path, {**made_with, "features": features})
    except InputError as error:
        print(f"descriptors are not kept: {error}")
    return features


def _read(path: Path) -> dict:
    """A file's content, memory-mapped; nothing for a damaged one."""
    try:
        with open_file(path) as file:
            check_stored_zip(file)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # whatever is wrong with it, it is made anew
        return {}
    return content if isinstance(content, dict) else {}


def _are_features(features: object, count: int) -> bool:
    """Whether they are descriptors (count, d) and maps (count, d, h, w) of floats."""
    return (
        isinstance(features, list)
        and all(isinstance(part, Tensor) and part.is_floating_point() and len(part) == count for part in features)
        and [part.dim() for part in features] == [2, 4]
    )


def _network(model) -> Iterable[bytes]:
    """All that descriptors depend on in a network."""
    yield f"{model.normalize} {model.norm_layer}".encode()
    for name, tensor in model.state_dict().items():
        if not name.startswith(NO_PART):
            yield f"{name} {tuple(tensor.shape)}".encode()
            yield tensor.cpu().contiguous().numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
