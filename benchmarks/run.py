"""Every stage beside the reference implementation and the machine's limit: `python -m benchmarks run`.

Times, and ratios, are medians of repetitions in which the variants take turns: ratios hold on a machine whose speed
drifts.
"""

import argparse
import platform
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks import reference
from benchmarks.bounds import bounds_of
from benchmarks.loading import loading
from benchmarks.measure import PLAIN, Stage, costs_of, print_rows, print_titles
from models.fused import linear
from models.network import RerankingNetwork
from models.settings import NetworkSettings
from sop.samplers import TripletSampler
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.knn import exact_index, nearest_neighbours
from utils.retrieval.pair_scoring import PAIRS_AT_ONCE, pair_scores, rerank
from utils.runtime.device import IMAGES_AT_ONCE
from utils.runtime.precision import computes_in_bf16, set_precision
from utils.training.loop import train_global, train_rerank
from utils.training.losses import BinaryCrossEntropyWithLogits, Contrastive

TOKENS = 100  # of a pair, CLS and SEP included
PRECISIONS = {
    "cpu": ("fp32", "bf16") if computes_in_bf16(torch.device("cpu")) else ("fp32",),
    "cuda": ("fp32", "tf32", "bf16"),
}


def in_each_precision(
    device: torch.device, run: Callable[[torch.dtype], object], name: str = ""
) -> dict[str, Callable[[], object]]:
    """`run` with the dtype of each of a device's precisions, under `name` and the precision's."""

    def in_precision(precision: str) -> Callable[[], object]:
        return lambda: run(set_precision(precision, device))

    return {name + precision: in_precision(precision) for precision in PRECISIONS[device.type]}


def compared(
    device: torch.device, plain: Callable[[], object], ours: Callable[[torch.dtype], object]
) -> dict[str, Callable[[], object]]:
    """`plain` in float32, and `ours` in each of the device's precisions."""
    return {PLAIN: lambda: (set_precision("fp32", device), plain()), **in_each_precision(device, ours)}


def build(freeze_backbone: bool = False) -> RerankingNetwork:
    torch.manual_seed(0)
    return RerankingNetwork(1000, NetworkSettings(pretrained=False, normalize=True, freeze_backbone=freeze_backbone))


def matcher_products(pairs: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products that remain to be done for some pairs, alone, by cuBLAS or oneDNN.

    The last layer reads one token only. Attention's two products, for all heads together, count as one of as many
    operations. They are done for as many pairs at a time as scoring takes.
    """
    pairs_at_once = min(pairs, PAIRS_AT_ONCE[device.type])
    tokens = torch.randn(pairs_at_once * TOKENS, 128, device=device, dtype=dtype)
    wide = torch.randn(pairs_at_once * TOKENS, 1024, device=device, dtype=dtype)
    shapes = ((384, 128), (2 * TOKENS, 128), (128, 128), (1024, 128), (128, 1024))
    weights = [torch.randn(*shape, device=device, dtype=dtype) for shape in shapes]

    @torch.no_grad()
    def run() -> None:
        for _ in range(pairs // pairs_at_once):
            for _ in range(5):
                for left, right in zip((tokens, tokens, tokens, tokens, wide), weights, strict=True):
                    linear(left, right, None)
            linear(tokens, weights[0][128:], None)

    return run


def pair_scoring(device: torch.device) -> Stage:
    queries = 4 if device.type == "cpu" else 300
    model = build().eval().to(device)
    maps = torch.randn(queries + 100, 128, 7, 7)
    neighbours = torch.stack([torch.randperm(len(maps))[:100] for _ in range(queries)])
    pairs, stored = neighbours.numel(), {dtype: maps.to(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def ours(dtype: torch.dtype) -> None:
        rerank(model, stored[dtype][:queries], stored[dtype], neighbours)

    def plain_variant() -> None:
        reference.rerank(model, maps[:queries], maps, neighbours)

    def similarities() -> None:
        pair_scores(model, maps[:queries], maps, neighbours, [Chamfer()])

    products = {dtype: matcher_products(pairs, device, dtype) for dtype in stored}
    limits = in_each_precision(device, lambda dtype: products[dtype](), "limit ")
    variants = compared(device, plain_variant, ours) | {"Chamfer similarity": similarities} | limits
    return Stage("pair scoring", pairs, "pairs", variants, repetitions=7)


def embedding(device: torch.device) -> Stage:
    count = 32 if device.type == "cpu" else 800
    model = build().eval().to(device)
    pixels = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    floats, images_at_once = pixels.float() / 255, IMAGES_AT_ONCE[device.type]
    if device.type == "cuda":
        pixels, floats = pixels.pin_memory(), floats.pin_memory()  # as loaders do

    def ours(dtype: torch.dtype) -> None:
        embedder = model.embedder(dtype)
        for piece in pixels.split(images_at_once):
            embedder(piece.to(device, non_blocking=True))[0].cpu()

    def plain_variant() -> None:
        reference.embed(model, floats.to(device)).cpu()

    return Stage("embedding", count, "images", compared(device, plain_variant, ours))


def searching(device: torch.device) -> Stage:
    count = 60_502
    features = torch.nn.functional.normalize(torch.randn(count, 128), dim=1)
    index = exact_index(features, device)
    variants = {
        PLAIN: lambda: index.search(features.numpy(), 1000),
        "ours": lambda: nearest_neighbours(features.to(device), None, 999),
    }
    warm_up = int(device.type == "cuda")  # on a CPU each search takes half a minute
    return Stage("nearest neighbours, K = 1,000", count, "queries", variants, 1, warm_up)


def triplet_sampling(device: torch.device) -> Stage:
    rng, classes, images = np.random.default_rng(0), 11_318, 59_551
    counts = 2 + rng.multinomial(images - 2 * classes, np.full(classes, 1 / classes))
    labels, neighbours = np.repeat(np.arange(classes), counts), rng.integers(0, images, (images, 100))
    label_list, neighbour_lists = labels.tolist(), neighbours.tolist()
    random.seed(0)
    variants = {
        PLAIN: lambda: list(reference.triplets(label_list, neighbour_lists)),
        "start-up included": lambda: list(TripletSampler(labels, neighbours, 300, 0).batches(rng)),
    }
    return Stage("triplets", images, "anchors", variants)


def training(task: str, device: torch.device) -> Stage:
    """Warm-up is long, as the plain steps become faster while the process comes to keep more memory."""
    count = 24 if device.type == "cpu" else 300
    pixels, labels = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8), torch.arange(count) // 2
    floats, loader = pixels.float() / 255, [(pixels, labels, torch.arange(count))]
    contrastive, cross_entropy = Contrastive(), BinaryCrossEntropyWithLogits()
    plain, model = (build(freeze_backbone=task.endswith("frozen backbone")).to(device).train() for _ in range(2))
    model = model.to(memory_format=torch.channels_last)
    optimizers = [
        SGD(network.parameters(), 1e-3, 0.9, fused=fused)
        if task == "global"
        else AdamW(network.parameters(), 1e-4, fused=fused)
        for network, fused in ((plain, None), (model, True))
    ]
    scheduler = MultiStepLR(optimizers[1], [1000])

    def plain_loss() -> torch.Tensor:
        images = floats.to(device)
        maps = reference.backbone(plain, images)
        if task == "global":
            return contrastive(None, plain.global_descriptors(maps), labels.to(device))
        local = plain.remap_local(maps)
        scores = [reference.score(plain.matcher, local[0::3], local[role::3]) for role in (1, 2)]
        targets = torch.cat((torch.ones_like(scores[0]), torch.zeros_like(scores[1])))
        return cross_entropy(torch.cat(scores), None, targets).mean()

    def ours(dtype: torch.dtype) -> None:
        train, loss = (train_global, contrastive) if task == "global" else (train_rerank, cross_entropy)
        train(model, loader, loss, optimizers[1], scheduler, 0, dtype=dtype)

    def plain_variant() -> None:
        optimizers[0].zero_grad()
        value = plain_loss()
        value.backward()
        optimizers[0].step()
        value.item()

    return Stage(f"training step, {task}", count, "images", compared(device, plain_variant, ours), warm_up=5)


STAGES: dict[str, Callable[[torch.device], Stage]] = {
    "scoring": pair_scoring,
    "loading": loading,
    "embedding": embedding,
    "searching": searching,
    "triplets": triplet_sampling,
    "training": partial(training, "global"),
    "finetuning": partial(training, "rerank"),
    "frozen": partial(training, "rerank with a frozen backbone"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"some of {', '.join(STAGES)}; all by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}\n")
    print_titles()
    for stage in arguments.stages or STAGES:
        print_rows(*costs_of(STAGES[stage], device))
    if device.type == "cuda":
        with torch.device("meta"):
            network = build()
        print("", *bounds_of(name, network.eval()), sep="\n")
