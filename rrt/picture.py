"""A picture of what the matcher reads in a pair of photos."""

import torch
from PIL import Image

from rrt.images import Photo
from rrt.reranker import Reranker
from utils.runtime.precision import float32_throughout

SIDE, GAP = 448, 16  # pixels
DARKEST = 0.85  # how much of a photo's light a patch loses that is not read


@float32_throughout()
@torch.inference_mode()
def attention_picture(reranker: Reranker, a: Photo, b: Photo) -> Image.Image:
    """Query `a` and candidate `b` side by side, as the network sees them: squared, cut at their edges, not turned.

    The brighter a patch, the more the readout takes from it in the last layer, in the mean of its heads.
    """
    pixels = torch.stack([reranker.pixels(photo) for photo in (a, b)])
    query, candidate = (part[None] for part in reranker.embed_pixels(pixels).maps.to(reranker.device))
    matcher = reranker.network.matcher
    weights = matcher.attention(matcher.encode_queries(query), matcher.encode_candidates(candidate))
    readout = weights[0, -1, :, 0].mean(dim=0).cpu()
    n = query[0, 0].numel()
    sides = [readout[1 : n + 1].view(query.shape[2:]), readout[n + 2 :].view(candidate.shape[2:])]
    most = torch.cat([side.flatten() for side in sides]).max()
    picture = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    for number, (image, weight) in enumerate(zip(pixels, sides, strict=True)):
        view = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE))
        light = Image.fromarray((255 * (1 - DARKEST * (1 - weight / most))).byte().numpy())
        light = light.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        black = Image.new("RGB", view.size)
        picture.paste(Image.composite(view, black, light), (number * (SIDE + GAP), 0))
    return picture
