"""Upper bounds of a GPU's rates (roofline): the time of a kernel is the longer of those of its FLOPs and its bytes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from models.network import RerankingNetwork

EFFICIENCY = 0.5, 0.85  # of large products and of large copies, relative to the data sheet


class Card(NamedTuple):
    """Rates of a data sheet, dense: TFLOP/s in bfloat16, half of which TF32 has, and TB/s."""

    half: float
    bandwidth: float


CARDS = {"H200": Card(989, 4.8), "H100": Card(989, 3.35), "A100": Card(312, 2.04), "RTX 4090": Card(165, 1.01)}

Kernel = tuple[float, float]  # FLOPs and bytes


def embedding_kernels(network: RerankingNetwork, size: int) -> Iterator[Kernel]:
    """The kernels that embed an image of 224 x 224 in numbers of `size` bytes; bias, shortcut and ReLU are fused into
    convolutions. `network` is on the meta device."""
    pixels = 3 * 224 * 224
    yield 0, pixels * (1 + size + 4 * 8)  # to float, divided, less the mean, divided, in channels' order
    embedder, kernels = network.embedder(), []
    backbone: Any = embedder.backbone
    with_shortcut = {id(convolutions[-1]) for convolutions, _ in backbone.blocks}

    def note(conv, inputs, output):
        maps = inputs[0].numel() + output.numel() * (2 if id(conv) in with_shortcut else 1)
        kernels.append((2 * output.numel() * conv.weight[0].numel(), size * maps))

    convolutions = [backbone.stem, embedder.remap_local]
    for of_block, shortcut in backbone.blocks:
        convolutions += [*of_block, *([shortcut] if shortcut else [])]
    for conv in convolutions:
        conv.register_forward_hook(note)
    embedder(torch.empty(1, 3, 224, 224, device="meta"))
    yield from kernels
    yield 0, size * 64 * (112**2 + 56**2)  # the pooling


def scoring_kernels(size: int, with_kernel: bool, tokens: int = 100, d: int = 128, hidden: int = 1024) -> list[Kernel]:
    """The kernels that score a pair in six layers, the last one for a single token.

    Numbers in products take `size` bytes, tokens 4. `with_kernel`: one kernel computes what follows attention, else
    ReLU is fused into its product.
    """

    def product(k: int, n: int) -> int:
        return 2 * tokens * k * n

    exact, short, inner = 4 * tokens * d, size * tokens * d, size * tokens * hidden
    cast = [(0, exact + short)] if size < 4 else []
    layer = [*cast, (product(d, 3 * d), 4 * short), (4 * tokens * tokens * d, 4 * short)]
    if with_kernel:
        layer += [(product(d, d) + 2 * product(d, hidden), short + 2 * exact)]
    else:
        added = short + 2 * exact if size < 4 else 3 * exact
        layer += [(product(d, d), 2 * short), (0, added), (0, 2 * exact), *cast]
        layer += [(product(d, hidden), short + inner), (product(hidden, d), inner + short), (0, added), (0, 2 * exact)]
    last = [*cast, (product(d, 2 * d), 3 * short), (4 * tokens * d, 3 * short)]
    return [(0, 2 * short + 3 * exact), *5 * layer, *last]


def seconds(kernels: list[Kernel], card: Card, size: int) -> float:
    """The time of kernels on a card, with products of numbers of `size` bytes."""
    rate = EFFICIENCY[0] * card.half * 1e12 * (1 if size < 4 else 0.5)
    return sum(max(flops / rate, moved / (EFFICIENCY[1] * card.bandwidth * 1e12)) for flops, moved in kernels)


def bounds_of(name: str, network: RerankingNetwork) -> list[str]:
    """Lines on the bounds of the card called `name`; none for a card that is not in `CARDS`."""
    lines = []
    for card in (CARDS[known] for known in CARDS if known in name):
        for precision, size in (("tf32", 4), ("bf16", 2)):
            images = 1 / seconds(list(embedding_kernels(network, size)), card, size)
            pairs = 1 / seconds(scoring_kernels(size, with_kernel=size < 4), card, size)
            lines.append(
                f"by bytes and FLOPs in {precision}: {images:,.0f} images/s embedded, {60_502 / images:.1f} s for "
                f"SOP's test photos; {pairs:,.0f} pairs/s scored, {6_050_200 / pairs:.0f} s for its candidates"
            )
    return lines
