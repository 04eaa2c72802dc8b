import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw

from rrt import Reranker
from rrt.images import pixels_of
from rrt.patches import patch_boxes
from rrt.picture import COLOUR, GAP, SIDE, pair_picture
from sop.images.transforms import Resizing
from sop.images.transforms import test_transform as evaluation_transform


def test_pairs_make_the_chamfer_similarity(reranker, paths):
    pairs = reranker.patches(paths[0], paths[1])
    features = reranker.embed(paths[:2])
    a, b = torch.nn.functional.normalize(features.maps.flatten(2), dim=1)
    cosines, boxes = (
        (a.T @ b).numpy(),
        patch_boxes(pixels_of(paths[0], lambda photo: photo.size), (2, 2), 64, reranker.resizing),
    )
    best = {(i, j) for i, j in enumerate(cosines.argmax(1))} | {(i, j) for j, i in enumerate(cosines.argmax(0))}
    found = {(boxes.index(pair.query), boxes.index(pair.candidate)): pair for pair in pairs}  # photos of one size
    assert found.keys() == best and len(pairs) == len(best)
    for (i, j), pair in found.items():
        assert pair.cosine == pytest.approx(cosines[i, j], abs=1e-6)
        times = (cosines[i].argmax() == j) + int(cosines[:, j].argmax() == i)
        assert pair.share == pytest.approx(times * cosines[i, j] / 8, abs=1e-6)
    assert [pair.share for pair in pairs] == sorted((pair.share for pair in pairs), reverse=True)
    (match,) = reranker.rank(paths[0], [paths[1]], fusion=(0, 1))
    assert sum(pair.share for pair in pairs) == pytest.approx(match.score - match.logit, abs=1e-5)


def coordinates(width: int, height: int) -> Image.Image:
    """A photo whose red tells a pixel's place across, from 0 to 240, and whose green tells that down."""
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.rint(240 * np.dstack([across, down, 0 * down])).astype(np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (256, 256)])
@pytest.mark.parametrize(
    "resizing", [Resizing(), Resizing("bicubic", 0.9, keeps_aspect=True), Resizing("bicubic", 1.0)]
)
def test_boxes_are_where_the_network_looks(size, resizing):
    pixels = evaluation_transform(224, resizing=resizing)(coordinates(*size))
    patches = pixels.unfold(1, 32, 32).unfold(2, 32, 32).float().mean(dim=(3, 4)).flatten(1).T.numpy()
    boxes = np.array(patch_boxes(size, (7, 7), 224, resizing))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(patches[:, :2] / 240 * np.array(size), centres, atol=max(size) / 200)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert np.allclose(boxes[6, :2], [boxes[5, 2], boxes[0, 1]]) and np.allclose(sides, sides[0])


def test_boxes_of_upright_photos_and_arrays(reranker, tmp_path):
    photo, exif = coordinates(60, 40), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    pairs = reranker.patches(tmp_path / "turned.png", np.asarray(photo))
    crop = reranker.resizing.crop_fraction
    for boxes, size in (([pair.query for pair in pairs], (40, 60)), ([pair.candidate for pair in pairs], (60, 40))):
        for box in boxes:
            assert (box[2] - box[0], box[3] - box[1]) == pytest.approx([side * crop / 2 for side in size], rel=0.02)


def test_the_picture_of_an_untrained_matcher_has_its_photos_and_lines(paths, monkeypatch):
    untrained = Reranker.from_backbone("tf_efficientnet_lite0", head=None)
    drawn = np.asarray(pair_picture(untrained, *paths[:2]))
    monkeypatch.setattr("rrt.picture.STRONGEST", 0)
    plain = np.asarray(pair_picture(untrained, *paths[:2]))
    view = Image.fromarray(untrained.pixels(paths[0]).permute(1, 2, 0).numpy()).resize((SIDE, SIDE))
    assert (plain[:, :SIDE] == np.asarray(view)).all() and (plain != drawn).any()


def test_the_picture_joins_patches(reranker, paths, monkeypatch):
    pictures = []
    for number in (0, 1):
        monkeypatch.setattr("rrt.picture.STRONGEST", number)
        pictures.append(pair_picture(reranker, *paths[:2]))
    boxes = patch_boxes(pixels_of(paths[0], lambda photo: photo.size), (2, 2), 64, reranker.resizing)
    strongest = reranker.patches(*paths[:2])[0]
    (y0, x0), (y1, x1) = (divmod(boxes.index(box), 2) for box in (strongest.query, strongest.candidate))
    ends = [
        SIDE * (2 * x0 + 1) / 4,
        SIDE * (2 * y0 + 1) / 4,
        SIDE * (2 * x1 + 1) / 4 + SIDE + GAP,
        SIDE * (2 * y1 + 1) / 4,
    ]
    ImageDraw.Draw(pictures[0]).line(ends, COLOUR, 2)
    assert pictures[0] == pictures[1]
