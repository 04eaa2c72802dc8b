from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import backends
from torch.utils.data import DataLoader

from models.matcher import _position_code
from rrt import Features, InputError, Reranker
from rrt.images import pixels_of
from rrt.picture import attention_picture
from sop.dataset import ImageSet
from sop.splits import class_map, read_split
from sop.transforms import test_transform as evaluation_transform
from tests import ROOT
from tests.rrt.conftest import CROP_SIZE
from utils.embedding import GLOBAL, LOCAL, embed


def plain_logits(reranker, query, candidates):
    """The matcher's logits (m,) of one query's features with candidates', pair by pair."""
    matcher = reranker.network.matcher
    with torch.no_grad():
        return torch.cat([matcher(None, query.maps, None, map_[None]) for map_ in candidates.maps])


def test_embeds_as_the_evaluation_does(reranker, photos):
    split = read_split(photos, "test.txt")
    images = ImageSet(photos, split, class_map(split), evaluation_transform(CROP_SIZE))
    loader = DataLoader(images, batch_size=8)
    (descriptors, maps), _ = embed(reranker.network, loader, [GLOBAL, LOCAL], "test", torch.float32, None)
    features = reranker.embed([photos / path for path in split.paths])
    torch.testing.assert_close(features.descriptors, F.normalize(descriptors, dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.maps, maps, rtol=0, atol=1e-5)


def test_ranks_by_the_logit(reranker, paths):
    matches = reranker.rank(paths[0], paths[1:])
    query, candidates = reranker.embed(paths[0]), reranker.embed(paths[1:])
    logits = plain_logits(reranker, query, candidates)
    found, expected = [match.index for match in matches], logits.argsort(descending=True).tolist()
    assert [min(index, 3) for index in found] == [min(index, 3) for index in expected]  # the last three are one photo
    assert sorted(found) == list(range(6))
    for match in matches:
        assert match.score == match.logit == pytest.approx(logits[match.index].item(), abs=1e-5)
        assert match.cosine == pytest.approx((query.descriptors @ candidates.descriptors[match.index]).item(), abs=1e-6)
    assert reranker.rank(query, candidates, top_k=2) == reranker.rank(query, candidates)[:2]
    torch.testing.assert_close(reranker.score([paths[0]] * 6, paths[1:]), logits, rtol=0, atol=1e-5)


def test_fuses_two_similarities(reranker, paths):
    query, candidates = reranker.embed(paths[:1]), reranker.embed(paths[1:])
    tokens = F.normalize(candidates.maps.flatten(2), dim=1)
    cosines = F.normalize(query.maps.flatten(2), dim=1).transpose(1, 2) @ tokens
    chamfer = (cosines.amax(2).mean(1) + cosines.amax(1).mean(1)) / 2
    expected = (
        plain_logits(reranker, query, candidates) + 3 * candidates.descriptors @ query.descriptors[0] + 2 * chamfer
    )
    matches = reranker.rank(query, candidates, fusion=(3, 2))
    assert [match.index for match in matches] == expected.argsort(descending=True).tolist()
    found = torch.tensor([match.score for match in matches])
    torch.testing.assert_close(found, expected.sort(descending=True).values, rtol=0, atol=1e-4)
    scores = reranker.score(Features(*(part.expand(6, *part.shape[1:]) for part in query)), candidates, fusion=(3, 2))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_reranks_the_results_of_another_search(reranker, paths):
    features = reranker.embed(paths)
    neighbours = np.array([[3, 1], [5, 0], [2, 4]])
    queries = Features(features.descriptors[:3].numpy(), features.maps[:3].numpy())
    for part in queries:
        part.setflags(write=False)  # as numpy maps files
    ranking = reranker.rerank(queries, features, neighbours, fusion=[1, 0])
    for row in range(3):
        gallery = Features(*(part[neighbours[row]] for part in features))
        matches = reranker.rank(Features(*(part[row : row + 1] for part in features)), gallery, fusion=(1, 0))
        assert ranking.positions[row].tolist() == [neighbours[row][match.index] for match in matches]
        np.testing.assert_allclose(ranking.scores[row], [match.score for match in matches], atol=1e-5)
    smaller = Features(features.descriptors, features.maps[..., :1])  # as images of another shape have them
    assert reranker.rank(paths[0], smaller)[0].logit == pytest.approx(
        plain_logits(reranker, reranker.embed(paths[0]), smaller).max().item(), abs=1e-5
    )
    assert reranker.rerank(queries, features, neighbours[:, :0]).positions.shape == (3, 0)


def test_bits_of_bfloat16_are_numbers_of_it(reranker, paths):
    halves = Features(*(part.bfloat16() for part in reranker.embed(paths)))
    bits = Features(*(part.view(torch.uint16).numpy() for part in halves))
    assert torch.equal(reranker.score(bits, bits), reranker.score(halves, halves))
    with pytest.raises(InputError, match=r"features of torch\.int16: give floating-point numbers"):
        reranker.score(Features(*(part.astype(np.int16) for part in bits)), halves)


def test_kinds_of_images(reranker, paths):
    path = paths[0]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = reranker.embed(str(path)).descriptors
    for same in (path, image, array, tensor, tensor / 255, tensor[None], array[None], [image]):
        assert torch.equal(reranker.embed(same).descriptors, expected)
    assert len(reranker.embed([]).maps) == 0
    grey = pixels_of(np.full((9, 7), 128, np.uint8), evaluation_transform(CROP_SIZE))
    assert grey.shape == (3, CROP_SIZE, CROP_SIZE) and (grey == 128).all()
    assert len(reranker.embed([np.zeros((1, 1, 3), np.uint8), image]).maps) == 2  # of whatever size


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("nowhere.jpg", r"photo nowhere\.jpg does not exist"),
        (ROOT / "README.md", r"photo .*README\.md cannot be read"),
        (np.zeros((4, 4, 3)), r"an array \(4, 4, 3\) of float64 is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (torch.zeros(4, 4, 3), "is no image"),
        (torch.full((3, 4, 4), 255.0), "outside 0 to 1"),
        (torch.full((3, 4, 4), float("nan")), "outside 0 to 1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"a tensor of torch\.int64"),
        ([3], "image 0: int is no image"),
        ("long" * 99, "does not exist"),
    ],
    ids=str,
)
def test_what_is_no_image(reranker, image, told):
    with pytest.raises(InputError, match=told):
        reranker.embed(image)


def test_images_of_pil_are_read_as_their_files_are(reranker, tmp_path):
    deep = Image.fromarray(np.full((40, 60), 4095, np.uint16))
    deep.save(tmp_path / "black.tif", tiffinfo={ExifTags.Base.PhotometricInterpretation: 0})  # 0 is white
    Image.new("RGB", (300, 300)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    for name, told in (("black.tif", "greys that are not of 8 or 16 bits"), ("cut.png", r"image 1: .*cannot be read")):
        with Image.open(tmp_path / name) as opened:
            for image in (tmp_path / name, opened):
                with pytest.raises(InputError, match=told):
                    reranker.embed([np.zeros((4, 4), np.uint8), image])


def test_refuses_what_does_not_fit(reranker, paths):
    features = reranker.embed(paths)
    assert reranker.rank(paths[0], []) == []
    assert len(reranker.score([], [])) == 0
    for call, told in [
        (lambda: reranker.rank(paths[:2], paths), "2 queries"),
        (lambda: reranker.rank(paths[0], paths, top_k=0), "top_k=0"),
        (lambda: reranker.rank(paths[0], paths, fusion=(1, -1)), "fusion="),
        (lambda: reranker.score(paths[:2], paths), "are no pairs"),
        (lambda: reranker.rerank(features, features, np.zeros((2, 3), int)), r"give whole numbers \(7, k\)"),
        (lambda: reranker.rerank(features, features, np.zeros((7, 3))), "whole numbers"),
        (lambda: reranker.rerank(features, features, np.full((7, 3), 7)), "hold 7 to 7, but the gallery has 7"),
        (lambda: reranker.rank(Features(features.descriptors[:1, :8], features.maps[:1]), features), "expected .n, 16"),
        (lambda: reranker.rank(features[:1], paths), "no image"),
        (lambda: Reranker(reranker.network, reranker.settings, device="meta"), "give 'cpu' or 'cuda'"),
        (
            lambda: reranker.rank(Features(*(part[:2] for part in (features.descriptors, features.maps[:1]))), paths),
            "not of",
        ),
    ]:
        with pytest.raises(InputError, match=told):
            call()


def test_quiet_and_threaded(reranker, paths, capfd):
    paths = paths[:4]
    expected = [reranker.rank(path, paths) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda path: reranker.rank(path, paths), paths)) == expected
    assert capfd.readouterr() == ("", "")
    reranker.embed(paths, progress=True)
    assert "Embedding" in capfd.readouterr().err


def test_torch_hub(saved, paths, reranker):
    loaded = torch.hub.load(str(ROOT), "reranker", str(saved), source="local", crop_size=CROP_SIZE, device="cpu")
    assert isinstance(loaded, Reranker)
    assert loaded.rank(paths[0], paths[1:]) == reranker.rank(paths[0], paths[1:])


@pytest.fixture
def program():
    """A stack that settings of torch are entered on; afterwards torch has its own again."""
    settings = (backends, backends.cudnn, backends.cuda.matmul, backends.mkldnn, backends.mkldnn.matmul)
    for setting in settings:
        setting.fp32_precision = "none"
    with ExitStack() as stack:
        yield stack
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")
    for setting in settings:
        setting.fp32_precision = "none"


def settings_of_torch():
    settings = (backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
    precisions = [setting.fp32_precision for setting in settings]
    return precisions, torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "set_otherwise",
    [
        lambda program: torch.set_default_dtype(torch.float64),
        lambda program: torch.set_default_dtype(torch.bfloat16),
        lambda program: torch.set_default_dtype(torch.float16),
        lambda program: torch.set_default_device("meta"),
        lambda program: program.enter_context(torch.device("meta")),
        lambda program: program.enter_context(torch.autocast("cpu", torch.bfloat16)),
        lambda program: program.enter_context(torch.inference_mode()),
        lambda program: torch.set_float32_matmul_precision("medium"),
        lambda program: setattr(backends, "fp32_precision", "tf32"),
        lambda program: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda program: setattr(backends.cudnn, "fp32_precision", "tf32"),
        lambda program: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
        lambda program: setattr(backends.mkldnn, "fp32_precision", "bf16"),
    ],
    ids=range(13),
)
def test_a_program_that_has_set_torch_otherwise(set_otherwise, program, reranker, saved, paths, tmp_path, recwarn):
    def answers() -> list[np.ndarray]:
        Reranker.from_pretrained(saved, device="cpu").save_pretrained(tmp_path)
        loaded = Reranker.from_pretrained(tmp_path, device="cpu")
        assert loaded.digest() == reranker.digest()
        features = loaded.embed([*paths[:2], np.zeros((9, 7), np.uint8)])
        assert {part.dtype for part in features} == {torch.float32}
        ranking = loaded.rerank(Features(*(part.numpy() for part in features)), features, np.eye(3, dtype=int), (2, 3))
        scores = [loaded.score(paths[:1], paths[1:2]), loaded.score([], []), *features]
        picture = np.asarray(attention_picture(loaded, *paths[:2]))
        matches = np.array(loaded.rank(paths[0], features, top_k=2))
        return [*(part.numpy() for part in scores), *ranking, matches, picture]

    expected = answers()
    _position_code.cache_clear()
    set_otherwise(program)
    before = settings_of_torch()
    found = answers()
    assert settings_of_torch() == before
    for answer, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(answer, same)


def test_settings_that_follow_another_still_do(program, reranker, paths):
    backends.fp32_precision = "tf32"
    reranker.rank(*paths[:2])
    backends.fp32_precision = "ieee"
    assert settings_of_torch()[0][:3] == ["ieee"] * 3
