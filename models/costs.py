"""What a network costs, in one line before any work."""

import re
import time

import torch
from torch import Tensor

from models.backbones.resnet import ResNetBackbone
from models.network import RerankingNetwork
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.pair_scoring import Scorer

PAIRS = 10  # whose scoring is timed
NON_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|non-?commercial|amlr")  # in a licence's name; Apple's for research, too
NAMES = {"matcher": "matcher", "chamfer": "Chamfer similarity"}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))


def print_costs(
    network: RerankingNetwork,
    crop_size: int,
    photos: int,
    dtype: torch.dtype = torch.float32,
    scorer: str | None = None,
) -> None:
    """Print `costs_text` for so many photos; torchvision's ResNets are well known. Pairs are timed that the `scorer`,
    'matcher' or 'chamfer', is to rank."""
    if isinstance(network.backbone, ResNetBackbone):
        return
    maps = blank_maps(network, crop_size, dtype)
    rate = None if scorer is None else (pairs_a_second(network, maps, scorer), scorer)
    print(costs_text(network.settings.arch, maps, photos, rate, network.backbone.licence))


def costs_text(arch: str, maps: Tensor, photos: int, rate: tuple[float, str] | None, licence: str | None) -> str:
    """What the line tells, of a photo's local maps (1, d, h, w), pairs a second and what scores them, and a licence."""
    _, channels, height, width = maps.shape
    parts = [
        f"{arch}: {height * width} tokens of {channels} channels a photo, {bytes_text(maps.nbytes)}, "
        f"{bytes_text(photos * maps.nbytes)} for {photos:,} photos"
    ]
    if rate is not None:
        parts.append(f"about {float(f'{rate[0]:.2g}'):,.0f} pairs/s by the {NAMES[rate[1]]}")
    use = ", not for commercial use" if NON_COMMERCIAL.search(licence or "") else ""
    parts.append(f"licence of its weights: {licence or 'unknown'}{use}")
    return "; ".join(parts)


def bytes_text(number: int) -> str:
    """A number of bytes in the unit that suits it."""
    unit, size = next((part for part in UNITS if number >= part[1]), UNITS[-1])
    return f"{number / size:.3g} {unit}"


@torch.inference_mode()
def blank_maps(network: RerankingNetwork, crop_size: int, dtype: torch.dtype) -> Tensor:
    """The local maps (1, d, h, w) of a blank image."""
    embedder = network.embedder(dtype)
    blank = torch.zeros(1, 3, crop_size, crop_size, dtype=torch.uint8, device=network.mean.device)
    return embedder.remap_local(embedder.layer_features(blank))


@torch.inference_mode()
def pairs_a_second(network: RerankingNetwork, maps: Tensor, scorer: str) -> float:
    """How many pairs of such maps the scorer scores in a second, once warm."""
    by: Scorer = Chamfer() if scorer == "chamfer" else network.matcher.computing_in(maps.dtype).eval()
    many = maps.expand(PAIRS, -1, -1, -1)
    for _ in range(2):
        start = time.perf_counter()
        by.score(by.encode_queries(many), by.encode_candidates(many)).cpu()
        seconds = time.perf_counter() - start
    return PAIRS / seconds
