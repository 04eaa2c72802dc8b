"""Trained networks: loaded from checkpoints, folders and the hub, and saved into a folder.

A folder has `model.safetensors` and `config.json`: `crop_size`, and as `network` the settings on which results depend;
beside them `README.md`, a model card.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors.torch
import torch
from huggingface_hub.constants import HF_HOME

from models.network import RerankingNetwork
from models.settings import ANSWER_SETTINGS, MODEL_RULES, NetworkSettings
from rrt.heads import SHIPPED, head_of, take_head
from rrt.words import PUBLISHED, WHERE_FROM
from sop.preparation.published import CHECKPOINTS, HUB_REPOSITORY, fetch_published
from utils.errors import InputError, listing
from utils.io.atomic import atomic_write_all
from utils.io.checkpoint import check_fits, read_tensors, state_dict_to_cpu, state_of, take_weights, training_info_of
from utils.io.hub import HUB_NAME, hub_files
from utils.retrieval.fitted import FittedWeights
from utils.runtime.precision import float32_throughout
from utils.settings import check_settings, plain, whole_number

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
WRITTEN = "<!-- save_pretrained wrote this, and will again; without this line it is yours, and kept -->"
CROP_SIZE = 224  # pixels; the published one
CROP_RULES = {"crop_size": whole_number(32, 4096)}
DEFAULTS: Mapping[str, Any] = MappingProxyType(NetworkSettings().those("answers"))  # of the published networks


class Pretrained(NamedTuple):
    """A trained network, its settings, the crop size of its training, and weights fitted for its ranking."""

    network: RerankingNetwork
    settings: dict[str, Any]
    crop_size: int
    fusion: FittedWeights | None = None
    matcher_trained: bool = True


def load(source: str | Path, crop_size: int | None, given: Mapping[str, Any]) -> Pretrained:
    """The network of `source`: see WHERE_FROM. `given` are settings that the source does not have.

    InputError where the source is missing or damaged, where settings are missing, or differ from those given.
    """
    given, crop_size = {name: plain(value) for name, value in given.items()}, plain(crop_size)
    check_given(given)
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{source!r} is no model: give {WHERE_FROM}")
    path = Path(source)
    if str(source) == PUBLISHED:
        return _checkpoint(_published(), crop_size, given)
    if os.path.isdir(path):  # noqa: PTH112  # Path's raises for names that are too long
        return _folder(path / CONFIG, path / WEIGHTS, crop_size, given)
    if os.path.exists(path):  # noqa: PTH110
        if path.suffix == ".safetensors":
            return _folder(path.with_name(CONFIG), path, crop_size, given)
        return _checkpoint(path, crop_size, given)
    if HUB_NAME.fullmatch(str(source)) and path.suffix not in (".pt", ".pth", ".safetensors"):
        try:
            files = hub_files(str(source), CONFIG, WEIGHTS)
        except InputError as error:
            raise InputError(f"{source} is no file or folder here, and {error}: give {WHERE_FROM}") from None
        return _folder(files[0], files[1], crop_size, given)
    raise InputError(f"{source} does not exist: give {WHERE_FROM}")


@float32_throughout()
def load_backbone(arch: str, weights: bool | str, crop_size: int | None, head: str | Path | None) -> Pretrained:
    """A pretrained backbone as a network; `Reranker.from_backbone` says how."""
    trained = head_of(arch, head)
    without_matcher: dict[str, Any] = {"ert_num_encoder_layers": 1, "ert_dim_feedforward": 1, "ert_nhead": 1}
    sizes: dict[str, Any] = {
        "num_global_features": None,
        "num_local_features": None if trained is None else trained.num_local_features,
    }
    settings = NetworkSettings(arch, weights, normalize=True, **sizes, **without_matcher)
    with torch.random.fork_rng(devices=[]):
        network = RerankingNetwork(1, settings).eval()
    if trained is not None:
        if head == SHIPPED and not trained.fits(network.backbone):
            return load_backbone(arch, weights, crop_size, None)
        take_head(network, trained)
    if crop_size is None:
        crop_size = network.backbone.crop_size_near(CROP_SIZE)
    check_settings({"crop_size": crop_size}, CROP_RULES)
    fusion = None if trained is None else trained.fusion
    return Pretrained(network, network.settings.those("answers"), crop_size, fusion, matcher_trained=False)


def save(folder: Path, pretrained: Pretrained, card: str) -> None:
    """Write the files of a network into a folder, all or none. InputError where they cannot be written.

    A card that does not have WRITTEN stays as it is.
    """
    network, settings, crop_size, fusion, matcher_trained = pretrained
    tensors = {name: tensor.contiguous() for name, tensor in state_dict_to_cpu(network.state_dict()).items()}
    content = {"crop_size": crop_size, "network": dict(settings)}
    if fusion is not None:
        content["fusion"] = fusion.to_dict()
    if not matcher_trained:
        content["matcher_trained"] = False
    if network.backbone.licence is not None:
        content["licence"] = network.backbone.licence
    contents = {CONFIG: json.dumps(content, indent=2).encode(), WEIGHTS: safetensors.torch.save(tensors)}
    if _may_replace(folder / CARD):
        contents[CARD] = card.encode()
    with atomic_write_all(*(folder / name for name in contents)) as files:
        for file, written in zip(files, contents.values(), strict=True):
            file.write(written)


def _may_replace(card: Path) -> bool:
    """Whether there is no card, or one of `save`."""
    try:
        return WRITTEN in card.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)


def check_given(given: Mapping[str, Any]) -> None:
    """Raise InputError for unknown settings, and for invalid values."""
    unknown = [name for name in given if name not in ANSWER_SETTINGS]
    if unknown:
        raise InputError(f"{listing(unknown)} is no setting of the network: choose from {listing(ANSWER_SETTINGS)}")
    check_settings(given, {name: MODEL_RULES[name] for name in given})


@float32_throughout()
def _checkpoint(path: Path, crop_size: int | None, given: Mapping[str, Any]) -> Pretrained:
    content = read_tensors(path)
    training = training_info_of(content)
    stored = {name: value for name, value in training.model.items() if name in ANSWER_SETTINGS}
    if not stored and not given and path.name not in CHECKPOINTS.names:
        raise InputError(
            f"checkpoint {path} does not have its settings: give those that differ from "
            + ", ".join(f"{name}={value!r}" for name, value in DEFAULTS.items())
            + "; where none does, arch='resnet50'"
        )
    fusion = FittedWeights.of_file(training.fusion, path)
    if training.matcher_trained is False and (fusion is None or fusion.logit):
        raise InputError(f"checkpoint {path} has a matcher that was never trained: experiment_rerank.py trains it")
    stored_crop_size = CROP_SIZE if training.crop_size is None else training.crop_size
    made = _network(path, content, {**given, **stored}, given, stored_crop_size if crop_size is None else crop_size)
    return made._replace(fusion=fusion, matcher_trained=training.matcher_trained is not False)


@float32_throughout()
def _folder(config: Path, weights: Path, crop_size: int | None, given: Mapping[str, Any]) -> Pretrained:
    for path in (config, weights):
        if not path.is_file():
            raise InputError(f"{path} does not exist: give {WHERE_FROM}")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        stored, stored_crop_size = dict(content["network"]), content["crop_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{config} is not as save_pretrained writes it: save the network again, or index again if it is an index's"
        ) from error
    try:
        tensors = safetensors.torch.load_file(weights)
    except Exception as error:  # damaged files raise many types
        raise InputError(f"{weights} could not be read: {error}") from error
    different = [name for name in given if stored.get(name, given[name]) != given[name]]
    if different:
        raise InputError(f"{config} has other values of {listing(different)}: leave them out")
    fusion = FittedWeights.of_file(content.get("fusion"), config)
    made = _network(weights, tensors, {**given, **stored}, given, stored_crop_size if crop_size is None else crop_size)
    return made._replace(fusion=fusion, matcher_trained=content.get("matcher_trained") is not False)


def _network(path: Path, content: object, said: dict, given: Mapping[str, Any], crop_size: int) -> Pretrained:
    check_settings({"crop_size": crop_size}, CROP_RULES)
    check_given(said)
    settings = {**DEFAULTS, **said}
    made_by = NetworkSettings(pretrained=False, normalize=True, **settings)
    state = state_of(content, path)
    if "classifier.bias" not in state:
        raise InputError(f"{path} is no checkpoint of a network: it lacks classifier.bias")
    num_classes = state["classifier.bias"].numel()
    with torch.device("meta"):  # nothing is allocated before the sizes are known to be those of the file
        check_fits(state, RerankingNetwork(num_classes, made_by), path)
    with torch.random.fork_rng(devices=[]):  # the first weights are the file's: none of the caller's numbers is drawn
        network = RerankingNetwork(num_classes, made_by)
    take_weights(content, path, network, training=False, settings=given)
    return Pretrained(network.eval(), settings, crop_size)


def _published() -> Path:
    """The published checkpoint with a finetuned backbone, fetched into the hub's cache at its first use."""
    folder = Path(HF_HOME) / "rrt"
    path = folder / CHECKPOINTS.names[-1]
    if not path.exists():
        fetch_published(CHECKPOINTS._replace(names=(path.name,)), HUB_REPOSITORY, folder)
    return path
