"""What backbones of many families cost: `python -m tools.families [NAME ...]` prints a table, of random weights.

Crops have each network's own size. The matcher scores maps of 128 channels, the Chamfer similarity the backbone's own.
"""

import argparse

import torch

from models.costs import bytes_text, pairs_a_second
from models.network import RerankingNetwork
from models.settings import NetworkSettings

ARCHS = (
    "resnet50",
    "tf_efficientnet_lite0",
    "mobilenetv3_large_100",
    "tf_efficientnetv2_s",
    "convnext_tiny",
    "regnety_008",
    "hrnet_w18",
    "inception_v3",
    "levit_256",
    "swin_tiny_patch4_window7_224",
    "deit_small_distilled_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "xcit_nano_12_p16_224",
)


@torch.inference_mode()
def row(arch: str) -> str:
    """A row of the table."""
    network = RerankingNetwork(1, NetworkSettings(arch, pretrained=False)).eval()
    size = getattr(network.backbone, "input_size", 224)
    grid = network.backbone(torch.zeros(1, 3, size, size)).shape[2:]
    embedder = network.embedder()
    own = embedder.layer_features(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    maps = embedder.remap_local(own)
    rates = (pairs_a_second(network, *by) for by in ((maps, "matcher"), (own, "chamfer")))
    cells = [arch, size, "{} x {}".format(*grid), own[0, 0].numel(), own.shape[1], bytes_text(own.nbytes)]
    return " | ".join(map(str, [*cells, *(f"{float(f'{rate:.2g}'):,.0f}" for rate in rates)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what backbones cost, as a table.")
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="NAME")
    print("| network | pixels | its map | tokens | channels | bytes of maps | pairs/s, matcher | pairs/s, Chamfer |")
    print("|---|---|---|---|---|---|---|---|")
    for arch in parser.parse_args().archs:
        print(f"| {row(arch)} |", flush=True)


if __name__ == "__main__":
    main()
