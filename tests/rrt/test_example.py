import os
import subprocess
import sys

import pytest
from PIL import Image

from docs.example import main
from rrt import InputError
from rrt.picture import GAP, SIDE
from tests import ROOT


def test_own_photos_to_a_picture(saved, reranker, photos, tmp_path, capsys):
    own = sorted(photos.glob("toy_final/*.JPG"))
    found = main(str(photos), str(saved), str(tmp_path))
    assert found == [str(own[1:][match.index]) for match in reranker.rank(own[0], own[1:], top_k=5)]
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (2 * SIDE + GAP, SIDE)
    assert "Indexing: 100%" in capsys.readouterr().err


def test_one_photo_has_no_others(saved, paths, tmp_path):
    with pytest.raises(InputError, match=r"has no photo but .*\.JPG: give a folder with more"):
        main(str(paths[0]), str(saved), str(tmp_path))


def test_says_what_it_takes():
    command = [sys.executable, "-m", "docs.example", "photos"]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: python -m docs.example [-h] PHOTOS MODEL OUT")
