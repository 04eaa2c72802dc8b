import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

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
from rrt.index import Index, update
from rrt.picture import pair_picture
from sop.dataset import ImageSet
from sop.images.transforms import test_transform as evaluation_transform
from sop.splits import class_map, read_split
from tests import ROOT
from tests.conftest import CUDA
from tests.rrt.conftest import CROP_SIZE
from utils.retrieval.embedding import GLOBAL, LOCAL, embed


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


def test_no_candidate_comes_last(reranker, paths):
    """As faiss fills up rows with -1."""
    features = reranker.embed(paths)
    whole = reranker.rerank(features[0], features, [5, 2, 4], fusion=(3, 2))
    rows = np.array([[-1, 5, 2, -1, 4], [-1] * 5])
    for given in (rows, torch.from_numpy(rows).int(), rows.tolist()):
        ranking = reranker.rerank(features[np.array([0, 3])], features, given, fusion=(3, 2))
        assert ranking.positions.tolist() == [[*whole.positions[0].tolist(), -1, -1], [-1] * 5]
        assert np.isneginf(ranking.scores[0, 3:]).all() and np.isneginf(ranking.scores[1]).all()
        np.testing.assert_allclose(ranking.scores[0, :3], whole.scores[0], atol=1e-5)
    nothing = reranker.rerank(features[:2], features[:0], rows[[1, 1]])
    assert (nothing.positions == -1).all() and np.isneginf(nothing.scores).all()


def test_features_of_some_images(reranker, paths):
    features = reranker.embed(paths)
    assert (len(features), len(features[2]), len(features[-1:]), len(reranker.embed([])[:3])) == (7, 1, 1, 0)
    in_numpy = Features(*(part.numpy() for part in features))
    for rows, expected in (
        (2, [2]),
        (np.int64(-1), [6]),
        (slice(1, None, 2), [1, 3, 5]),
        (np.array([4, 0]), [4, 0]),
        (np.arange(7) % 3 == 1, [1, 4]),
    ):
        for given in (features, in_numpy):
            descriptors, maps = given[rows]
            assert torch.equal(torch.as_tensor(descriptors), features.descriptors[expected])
            assert torch.equal(torch.as_tensor(maps), features.maps[expected])
    with pytest.raises(IndexError):
        features[7]
    assert len(reranker.rank(features[0], features[1:])) == 6
    assert reranker.rank(tuple(features[0]), list(features)) == reranker.rank(features[0], features)


def test_numbers_as_numpy_has_them(reranker, saved, paths, tmp_path):
    features = reranker.embed(paths)
    for fusion in (np.array([20, 10]), np.array([20.0, 10], np.float16), (np.float32(20), np.int8(10)), [20, 10.0]):
        assert reranker.rank(features[0], features, np.int8(3), fusion) == reranker.rank(
            features[0], features, 3, (20, 10)
        )
    loaded = Reranker.from_pretrained(saved, np.int64(CROP_SIZE), ert_nhead=np.int8(4))
    assert loaded.digest() == reranker.digest()
    loaded.save_pretrained(tmp_path)


def test_features_that_need_gradients_are_taken(reranker, paths):
    features = reranker.embed(paths[:3])
    expected = reranker.rank(features[0], features, fusion=(1, 1))
    for part in features:
        part.requires_grad_()
    assert not reranker.score(features, features).requires_grad
    assert reranker.rank(features[0], features, fusion=(1, 1)) == expected


@pytest.mark.parametrize(("part", "value"), [(0, np.nan), (1, np.inf), (1, 1e39)])
def test_features_that_are_not_finite(reranker, paths, part, value):
    features = Features(*(np.float64(numbers) for numbers in reranker.embed(paths)))
    list(features)[part][5, 0] = value
    assert len(reranker.rerank(features[0], features, [[1, 2]]).scores) == 1
    for call in (
        lambda: reranker.rerank(features[0], features, [[1, 5]]),
        lambda: reranker.rank(features[0], features),
        lambda: reranker.score(features, features),
    ):
        with pytest.raises(InputError, match="features of image 5 hold NaN or infinite numbers: leave"):
            call()


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
    numbers = [array, array / 255, (array / 255).astype(np.float32), tensor, tensor / 255, (tensor / 255).double()]
    numbers += [tensor.numpy(), tensor.numpy() / 255, np.dstack([array, np.full_like(array[..., :1], 255)])]
    of_paths = [np.array([str(path)]), np.array([path]), {path: 0}.keys(), iter([path])]  # as of pandas
    for same in (path, image, *numbers, tensor[None], array[None], [image], (tensor.requires_grad_(False),), *of_paths):
        assert torch.equal(reranker.embed(same).descriptors, expected)
    assert len(reranker.embed([]).maps) == 0
    greys = np.full((9, 7), 128, np.uint8)
    for grey in (greys, greys[None], greys[..., None], *map(torch.from_numpy, (greys, greys[None], greys[None] / 255))):
        pixels = pixels_of(grey, evaluation_transform(CROP_SIZE))
        assert pixels.shape == (3, CROP_SIZE, CROP_SIZE) and (pixels == 128).all()
    assert len(reranker.embed([np.zeros((1, 1, 3), np.uint8), image]).maps) == 2  # of whatever size


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.jpg", r"photo nowhere\.jpg does not exist"),
        (ROOT / "README.md", r"photo .*README\.md cannot be read"),
        (np.zeros((4, 4, 5)), r"an array \(4, 4, 5\) of float64 is no image"),
        (Image.new("RGB", (0, 5)), "image of 0 x 5 pixels is no image"),
        (None, "NoneType is no image: give a path"),
        (b"a.jpg", "bytes is no image: give a path"),
        (np.ones((4, 4)), r"of float64 is no image: .*The matcher needs local maps"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (torch.full((3, 4, 4), 255.0), "outside 0 to 1"),
        (torch.full((3, 4, 4), float("nan")), "outside 0 to 1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"a tensor \(3, 4, 4\) of torch\.int64"),
        ([3], "image 0: int is no image"),
        ("long" * 99, "does not exist"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image(reranker, image, message):
    for call in (reranker.embed, lambda image: reranker.rank(image, []), lambda image: reranker.score(image, image)):
        with pytest.raises(InputError, match=message):
            call(image)


def test_images_of_pil_are_read_as_their_files_are(reranker, tmp_path):
    deep = Image.fromarray(np.full((40, 60), 4095, np.uint16))
    deep.save(tmp_path / "black.tif", tiffinfo={ExifTags.Base.PhotometricInterpretation: 0})  # 0 is white
    Image.new("RGB", (300, 300)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    for name, message in (
        ("black.tif", "greys that are not of 8 or 16 bits"),
        ("cut.png", r"image 1: .*cannot be read"),
    ):
        with Image.open(tmp_path / name) as opened:
            for image in (tmp_path / name, opened):
                with pytest.raises(InputError, match=message):
                    reranker.embed([np.zeros((4, 4), np.uint8), image])


def test_refuses_what_does_not_fit(reranker, paths):
    features = reranker.embed(paths)
    assert reranker.rank(paths[0], []) == []
    assert len(reranker.score([], [])) == 0
    for call, message in [
        (lambda: reranker.rank(paths[:2], paths), "2 queries"),
        *((lambda k=k: reranker.rank(paths[0], paths, top_k=k), f"top_k={k}") for k in (0, 1.0, True)),
        *(
            (lambda given=given: reranker.rank(paths[0], paths, fusion=given), "fusion=")
            for given in ((1, -1), np.array([1, np.nan]), np.array(1.0), (True, 1), [1], {1, 2}, np.ones((2, 2)))
        ),
        (lambda: reranker.score(paths[:2], paths), "are no pairs"),
        (lambda: reranker.rerank(features, features, np.zeros((2, 3), int)), r"give whole numbers \(7, k\)"),
        (lambda: reranker.rerank(features, features, np.full((7, 3), 7)), "hold 7 to 7, but the gallery has 7"),
        (lambda: reranker.rerank(features, features, np.full((7, 3), -2)), "hold -2 to -2, but the gallery has 7"),
        (lambda: reranker.rank(Features(features.descriptors[:1, :8], features.maps[:1]), features), "expected .n, 16"),
        (lambda: Features(features.descriptors[:2], features.maps[:1]), r"are no features: give .*local maps"),
        (lambda: Features(features.descriptors, None), r"^\(7, 16\) and None are no features: give .*local maps"),
        (lambda: reranker.rank(features.descriptors[:1], features), "is no image: .*matcher needs local maps"),
        (lambda: reranker.rank(features[0], (features.descriptors, None)), "is no image: .*matcher needs local maps"),
        *(
            (lambda given=given: reranker.rerank(features, features, given), r"neighbours .*whole numbers \(7, k\)")
            for given in (None, np.zeros((7, 3)), np.zeros((7, 3), bool), np.full((7, 3), None), [[1]] * 6 + [[1, 2]])
        ),
        *(
            (
                lambda given=given: Reranker(reranker.network, reranker.settings, device=given),
                "give 'cpu', 'cuda' or 'mps'",
            )
            for given in ("meta", "gpu", "x", f"cuda:{torch.cuda.device_count()}", [])
        ),
    ]:
        with pytest.raises(InputError, match=message):
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
        lambda program: program.enter_context(torch.device("meta")),
        lambda program: program.enter_context(torch.autocast("cpu", torch.bfloat16)),
        lambda program: program.enter_context(torch.inference_mode()),
        lambda program: torch.set_float32_matmul_precision("medium"),
        lambda program: setattr(backends, "fp32_precision", "tf32"),
        lambda program: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda program: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
        lambda program: setattr(backends.mkldnn, "fp32_precision", "bf16"),
    ],
    ids=range(9),
)
def test_a_program_that_has_set_torch_otherwise(set_otherwise, program, reranker, saved, paths, tmp_path):
    def answers() -> list[np.ndarray]:
        drawn = torch.get_rng_state()
        Reranker.from_pretrained(saved, device="cpu").save_pretrained(tmp_path / "model")
        loaded = Reranker.from_pretrained(tmp_path / "model", device="cpu")
        assert torch.equal(torch.get_rng_state(), drawn)
        assert loaded.digest() == reranker.digest()
        features = loaded.embed([*paths[:2], np.zeros((9, 7), np.uint8)])
        assert {part.dtype for part in features} == {torch.float32}
        ranking = loaded.rerank(Features(*(part.numpy() for part in features)), features, np.eye(3, dtype=int), (2, 3))
        scores = [loaded.score(paths[:1], paths[1:2]), loaded.score([], []), *features]
        picture = np.asarray(pair_picture(loaded, *paths[:2]))
        matches = np.array(loaded.rank(paths[0], features, top_k=2))
        update(tmp_path / "index", map(Path, paths[:3]), loaded)
        ((found, _),) = Index(tmp_path / "index", device="cpu").search(features[:1], top=2, rerank=1)
        return [*(part.numpy() for part in scores), *ranking, matches, picture, np.array(found[1:4], float)]

    expected = answers()
    _position_code.cache_clear()
    shutil.rmtree(tmp_path / "index")
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


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_answers_like_the_cpu(device, program, reranker, saved, paths):
    """In float32 without TF32, whatever the program has set."""
    backends.fp32_precision = "tf32"
    on_gpu = Reranker.from_pretrained(saved, device=device)
    for found, expected in zip(on_gpu.embed(paths), reranker.embed(paths), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    found, expected = (model.rank(paths[0], paths, fusion=(2, 3)) for model in (on_gpu, reranker))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
