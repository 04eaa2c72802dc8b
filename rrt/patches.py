"""Which patches of two photos match: the pairs that the Chamfer similarity is the sum of."""

from typing import NamedTuple

from torch import Tensor

from sop.images.decoding import Box
from sop.images.transforms import Resizing
from utils.retrieval.chamfer import token_pairs


class PatchPair(NamedTuple):
    """Two patches of which at least one has the other as its best partner, as boxes in their photos.

    A box is left, upper, right and lower in pixels of the upright photo. The network has seen more than that around it.
    """

    query: Box
    candidate: Box
    cosine: float
    share: float  # what the pair adds to the Chamfer similarity, which is the sum of all pairs' shares


def patch_pairs(query: Tensor, candidate: Tensor, boxes: list[Box], candidate_boxes: list[Box]) -> list[PatchPair]:
    """The pairs of patches of two maps (1, d, h, w) and their boxes, those of the largest share first."""
    return [
        PatchPair(boxes[i], candidate_boxes[j], cosine, share) for i, j, cosine, share in token_pairs(query, candidate)
    ]


def patch_boxes(size: tuple[int, int], grid: tuple[int, int], crop_size: int, resizing: Resizing) -> list[Box]:
    """The boxes of a map's patches, row by row, in a photo of `size`, width and height.

    With a crop of 224 of a square of 256, the patch in row 0, column 6 of 7 has the square's columns 208 to 240: in a
    photo 640 pixels wide, these are 520 to 600.
    """
    rows, columns = grid
    left, upper, right, lower = resizing.box(*size)
    scale_x, scale_y = (side / resizing.square_size(crop_size) for side in (right - left, lower - upper))
    start, height, width = resizing.centre_crop(crop_size).start, crop_size / rows, crop_size / columns
    return [
        (
            left + (start + column * width) * scale_x,
            upper + (start + row * height) * scale_y,
            left + (start + (column + 1) * width) * scale_x,
            upper + (start + (row + 1) * height) * scale_y,
        )
        for row in range(rows)
        for column in range(columns)
    ]
