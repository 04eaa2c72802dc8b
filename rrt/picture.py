"""A picture of a pair of photos: the patches that match, and the matcher's attention."""

import torch
from PIL import Image, ImageDraw

from rrt.images import Photo
from rrt.patches import patch_boxes, patch_pairs
from rrt.reranker import Reranker
from sop.images.transforms import Resizing
from utils.runtime.precision import float32_throughout

SIDE, GAP = 448, 16  # pixels
DARKENING = 0.85  # of a patch without attention
STRONGEST, COLOUR = 8, "lime"  # pairs of patches that lines join


@float32_throughout()
@torch.inference_mode()
def pair_picture(reranker: Reranker, a: Photo, b: Photo) -> Image.Image:
    """Query `a` and candidate `b` side by side, as the network sees them: squared, cut at their edges.

    Lines join the pairs of patches with the largest shares of the Chamfer similarity. The brighter a patch, the more
    the readout of a trained matcher attends to it in the last layer, in the mean of its heads.
    """
    pixels = torch.stack([reranker.pixels(photo) for photo in (a, b)])
    maps = reranker.embed_pixels(pixels).maps[:, None]
    grids = [torch.ones(maps.shape[-2:])] * 2
    if reranker.matcher_trained:
        matcher, (query, candidate) = reranker.network.matcher, maps.to(reranker.device)
        weights = matcher.attention(matcher.encode_queries(query), matcher.encode_candidates(candidate))
        readout = weights[0, -1, :, 0].mean(dim=0).cpu()
        n = grids[0].numel()
        grids = [part.view(maps.shape[-2:]) for part in (readout[1 : n + 1], readout[n + 2 :])]
    maximum = torch.cat([grid.flatten() for grid in grids]).max()
    picture = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    for side, (image, weight) in enumerate(zip(pixels, grids, strict=True)):
        view = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE))
        light = Image.fromarray((255 * (1 - DARKENING * (1 - weight / maximum))).byte().numpy())
        light = light.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        black = Image.new("RGB", view.size)
        picture.paste(Image.composite(view, black, light), (side * (SIDE + GAP), 0))
    draw, boxes = ImageDraw.Draw(picture), patch_boxes((SIDE, SIDE), maps.shape[-2:], SIDE, Resizing(crop_fraction=1))
    for pair in patch_pairs(maps[0], maps[1], boxes, boxes)[:STRONGEST]:
        ends = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (pair.query, pair.candidate)]
        draw.line((ends[0], (ends[1][0] + SIDE + GAP, ends[1][1])), COLOUR, width=2)
    return picture
