"""A plain implementation of the method, to compare speed and answers with: no step is saved, everything is float32.

Images become floats by PIL and ToTensor, all tokens go through all layers, attention weights are returned, local maps
stay on the CPU and are copied pair by pair, samplers are Python loops.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from models.matcher import CANDIDATE, CLS, QUERY, SEP, Matcher
from models.network import RerankingNetwork
from models.position_encoding import sine_position_encoding

PAIRS_AT_ONCE = 3000  # scored at a time, as published


def load(path: Path, crop_size: int) -> Tensor:
    """A photo as a float image (3, crop, crop) with values in [0, 1]."""
    size = round(crop_size * 256 / 224)
    steps = [transforms.Resize((size, size)), transforms.CenterCrop(crop_size), transforms.ToTensor()]
    return transforms.Compose(steps)(Image.open(path).convert("RGB"))


def backbone(model: RerankingNetwork, images: Tensor) -> Tensor:
    """The `layer4` maps of float images, in the standard memory layout."""
    resnet: Any = model.backbone
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1((images - model.mean) / model.std))))
    return resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))


@torch.no_grad()
def embed(model: RerankingNetwork, images: Tensor) -> Tensor:
    """Global descriptors (B, d) of float images."""
    return model.global_descriptors(backbone(model, images))


def pair_tokens(matcher: Matcher, query_maps: Tensor, candidate_maps: Tensor) -> Tensor:
    """The sequences (B, 2 + n + m, d) of pairs of local maps (B, d, h, w)."""
    segment = matcher.seg_encoder.weight
    query, candidate = (
        (maps + sine_position_encoding(*maps.shape[1:]).to(maps)).flatten(2).transpose(1, 2) + segment[row]
        for maps, row in ((query_maps, QUERY), (candidate_maps, CANDIDATE))
    )
    cls, sep = (segment[row].expand(len(query), 1, -1) for row in (CLS, SEP))
    return torch.cat((cls, query, sep, candidate), dim=1)


def score(matcher: Matcher, query_maps: Tensor, candidate_maps: Tensor) -> Tensor:
    """Logits (B,) of pairs of local maps (B, d, h, w)."""
    tokens = pair_tokens(matcher, query_maps, candidate_maps)
    for layer in matcher.encoder.layers:
        tokens = encoder_layer(layer, tokens)
    if matcher.encoder.norm is not None:
        tokens = matcher.encoder.norm(tokens)
    return matcher.classifier(tokens[:, 0]).squeeze(1)


def encoder_layer(layer, tokens: Tensor) -> Tensor:
    """All tokens (B, L, d) through one encoder layer without dropout."""

    def attend(x: Tensor) -> Tensor:
        return layer.self_attn(x, x, x, need_weights=True)[0]

    def feed_forward(x: Tensor) -> Tensor:
        return layer.linear2(layer.activation(layer.linear1(x)))

    if layer.norm_first:
        tokens = tokens + attend(layer.norm1(tokens))
        return tokens + feed_forward(layer.norm2(tokens))
    tokens = layer.norm1(tokens + attend(tokens))
    return layer.norm2(tokens + feed_forward(tokens))


@torch.no_grad()
def rerank(
    model: RerankingNetwork, query_maps: Tensor, gallery_maps: Tensor, neighbours: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and gallery positions (n, k), sorted by falling logit, of CPU maps (n, d, h, w) and (m, d, h, w)."""
    device, scores = next(model.parameters()).device, []
    pairs = [(query, int(candidate)) for query, row in enumerate(neighbours) for candidate in row]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        batch = pairs[start : start + PAIRS_AT_ONCE]
        queries = torch.stack([query_maps[query] for query, _ in batch]).to(device)
        candidates = torch.stack([gallery_maps[candidate] for _, candidate in batch]).to(device)
        scores.append(score(model.matcher, queries, candidates).cpu())
    logits, order = torch.cat(scores).view(neighbours.shape).sort(dim=1, descending=True, stable=True)
    return logits.numpy(), neighbours.gather(1, order).numpy()


def triplets(labels: list[int], neighbours: list[list[int]]) -> Iterator[tuple[int, int, int]]:
    """Anchor, positive, negative for each image of an epoch, in random order."""
    images = defaultdict(list)
    for index, label in enumerate(labels):
        images[label].append(index)
    for anchor in random.sample(range(len(labels)), len(labels)):
        positives = [index for index in images[labels[anchor]] if index != anchor]
        negatives = [index for index in neighbours[anchor][:100] if labels[index] != labels[anchor]]
        if positives:
            if not negatives:
                negatives = [index for index in range(len(labels)) if labels[index] != labels[anchor]]
            yield anchor, random.choice(positives), random.choice(negatives)
