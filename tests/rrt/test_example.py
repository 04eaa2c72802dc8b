from PIL import Image

from docs.example import main
from rrt.picture import GAP, SIDE


def test_own_photos_to_a_picture(saved, reranker, photos, tmp_path):
    own = sorted(photos.glob("toy_final/*.JPG"))
    found = main(str(photos), str(saved), str(tmp_path))
    assert found == [str(own[1:][match.index]) for match in reranker.rank(own[0], own[1:], top_k=5)]
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (2 * SIDE + GAP, SIDE)
