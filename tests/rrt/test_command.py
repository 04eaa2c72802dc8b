import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

import rrt
from rrt.__main__ import main
from rrt.index import Result
from rrt.page import page
from rrt.picture import DARKENING, GAP, SIDE, pair_picture
from tests import ROOT
from utils.io.disk import stamp

NAMES = ["a b.png", "quo'te\".png", "<script>alert(1)<", "naïve 写真.png", "line\nbreak.png"]


@pytest.fixture
def own(tmp_path):
    """Photos whose names would run or break a page."""
    folder = tmp_path / "own"
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path, "PNG")
    (folder / NAMES[2]).rename(folder / f"{NAMES[2]}script>.png")
    return folder


class Elements(HTMLParser):
    """The elements of a page, and the texts of its captions."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.sources += [value for name, value in attributes if name == "src"]
        self.links += [value for name, value in attributes if name == "href"]
        self.titles += [value for name, value in attributes if name == "title"]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


def test_index_search_compare(saved, own, tmp_path, monkeypatch, capsys):
    index, query = str(tmp_path / "index"), str(own / NAMES[0])
    model = ["--model", str(saved), "--crop-size", "64"]
    assert main(["index", str(own), "--to", index, *model]) == 0
    assert "has 5 photos: 5 added, 0 embedded again, 0 removed; 0 could not be read\n" in capsys.readouterr().out
    (own / "broken.jpg").write_text("no photo")
    for name in ("1.HEIC", "2.heic", "none", "a.b", "a.c", "a.d", "a.e"):
        (own / name).touch()
    assert main(["index", str(own), "--to", index]) == 0  # by its own network
    output = capsys.readouterr()
    assert "has 5 photos: 0 added, 0 embedded again, 0 removed; 1 could not be read\n" in output.out
    assert re.search(r"photo .*broken\.jpg cannot be read", output.err)
    assert re.search(r"7 files were skipped by their endings; most frequent: \.heic \(2\)(, .* \(1\)){4}\n", output.err)
    assert main(["index", str(own), "--to", index, "--crop-size", "96"]) == 1
    assert "--crop-size, --setting and --weights need --model or --backbone" in capsys.readouterr().err
    assert main(["index", str(own), "--to", index, "--model", str(saved), "--crop-size", "96"]) == 1
    assert "is an index of another network" in capsys.readouterr().err
    assert main(["index", query, "--to", index]) == 0
    assert "\n4 of them are not among PHOTOS and are kept; --sync removes them\n" in capsys.readouterr().out
    assert main(["index", query, "--to", index, "--sync"]) == 1
    assert "4 of the 5 photos of" in capsys.readouterr().err
    assert main(["index", query, "--to", str(tmp_path / "copy"), *model]) == 0
    assert main(["index", str(own / NAMES[1]), "--to", str(tmp_path / "copy"), "--sync", "--yes"]) == 0
    assert "has 1 photos: 1 added, 0 embedded again, 1 removed" in capsys.readouterr().out

    assert main(["search", index, query, "--top", "3", "--rerank", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[:2] == ["reranked by logit, 2 candidates", query]
    assert lines[4].startswith("   3. cosine")
    assert main(["search", index, query, query, "--rerank", "0", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert len(answers) == 2 and answers[0]["found"][0]["photo"] == query
    capsys.readouterr()
    monkeypatch.chdir(own)
    assert main(["search", index, NAMES[0], "--rerank", "2", "--json"]) == 0
    reranked = json.loads(capsys.readouterr().out)
    assert reranked["format"] == 1
    (answer,) = reranked["answers"]
    assert answer["query"] == query
    assert [photo["rank"] for photo in answer["found"]] == [1, 2, 3, 4, 5]
    assert sorted(photo["rank_by_cosine"] for photo in answer["found"][:2]) == [1, 2]
    assert [photo["rank_by_cosine"] for photo in answer["found"][2:]] == [3, 4, 5]
    by_cosine = sorted(answer["found"], key=lambda photo: photo["rank_by_cosine"])
    for photo, plain in zip(by_cosine, answers[0]["found"], strict=True):
        assert set(photo) == {"photo", "rank", "rank_by_cosine", "score", "logit", "cosine", "probability"}
        expected = photo | {"rank": photo["rank_by_cosine"], "score": photo["cosine"], "logit": None}
        assert plain == pytest.approx(expected, abs=1e-6)
        assert -1 <= photo["cosine"] <= 1
    assert main(["search", index, query, "--fusion", "20", "10", "--html", str(tmp_path / "out.html")]) == 0
    elements = Elements((tmp_path / "out.html").read_text("ascii"))
    assert elements.names.count("meta") == 3
    assert "script" not in elements.names and elements.names.count("img") == 6
    hostile = next(path for path in own.rglob("*script>.png"))
    assert hostile.name in elements.text and str(hostile) in elements.titles and "line\\nbreak.png" in elements.text
    assert elements.names.count("h2") == 1 and "Reranked by logit + 20 * cosine + 10 * chamfer" in elements.text
    assert "写真" in elements.text
    assert all(source.startswith("data:image/jpeg;base64,") for source in elements.sources)
    assert {Path(unquote(urlsplit(link).path)) for link in elements.links} == {*own.rglob("*.png")}

    capsys.readouterr()
    assert main(["compare", query, str(own / NAMES[1]), *model, "--picture", str(tmp_path / "pair.png")]) == 0
    assert capsys.readouterr().out.startswith("logit ")
    with Image.open(tmp_path / "pair.png") as picture:
        assert picture.size == (2 * SIDE + GAP, SIDE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_what_cannot_be_printed(saved, own, tmp_path, monkeypatch, capsys):
    """Files are written all the same; answers that are printed only have been lost. `~` is of every path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    query = str(own / NAMES[0])
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["index", str(own), "--to=~/index", "--model", str(saved), "--crop-size", "64"]) == 0
        assert main(["search", "~/index", query, "--html=~/found.html"]) == 0
        assert (tmp_path / "index" / "model").exists() and (tmp_path / "found.html").exists()
        assert capsys.readouterr().err.count("could not be written") == 0
        assert main(["search", "~/index", query]) == 1
        assert main(["compare", query, query, "--model=~/index/model", "--picture=~/pair.png"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line]
    assert lines == 2 * ["the output could not be written: No space left on device"]
    assert (tmp_path / "pair.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", ".", "--to", "index"], "no model was given: --model takes a checkpoint"),
        (["search", "nowhere", "a.jpg"], "nowhere is no index"),
        (["compare", "a.jpg", "b.jpg", "--model", "none.pt"], "none.pt does not exist"),
        (
            ["search", "nowhere", "a.jpg", "--rerank", "0", "--fusion", "1", "1"],
            "--fusion and --cascade need reranking",
        ),
        (["index", ".", "--to", "index", "--yes"], "--yes needs --sync"),
    ],
)
def test_reports_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("photo.png")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_the_page_shows_photos_upright(tmp_path):
    turned = Image.Exif()
    turned[0x112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (80, 40)).save(tmp_path / "wide.jpg", exif=turned)
    text = page([tmp_path / "wide.jpg"], [[]], "ranked by cosine")
    content = re.search(r"base64,([^\"]+)", text)
    assert content is not None
    assert Image.open(io.BytesIO(base64.b64decode(content[1]))).size == (40, 80)


def test_the_page_shows_what_was_indexed(tmp_path):
    paths = [tmp_path / name for name in ("query.png", "same.png", "changed.png", "gone.png")]
    for path in paths:
        Image.new("RGB", (80, 40)).save(path)
    before = (37, 2, 111)  # ranks by cosine
    results = [
        Result(str(path), 1.0, None, 1.0, rank, stamp(path)) for path, rank in zip(paths[1:], before, strict=True)
    ]
    paths[2].touch()
    paths[3].unlink()
    elements = Elements(page(paths[:1], [results], "ranked by cosine"))
    assert elements.names.count("img") == len(elements.links) == 2
    assert "1. was 37th by cosinesame.png" in elements.text and "was 111th by cosine" in elements.text
    assert "was 2nd" not in elements.text  # as it is still
    assert f"photo {paths[2]} has changed since it was indexed: index it again" in elements.text
    message = f"photo {paths[3]} does not exist: it is still in the index; `index --sync` removes it"
    assert message in elements.text


def test_embeds_photos_as_viewers_show_them(reranker, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x112] = 6
    image.save(tmp_path / "turned.png", exif=turned)
    frames = [image.rotate(angle) for angle in (90, 180)]
    image.save(tmp_path / "animated.png", save_all=True, append_images=frames)
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = reranker.pixels(image)
    upright = reranker.pixels(image.transpose(Image.Transpose.ROTATE_270))
    assert (reranker.pixels(tmp_path / "turned.png") == upright).all()
    with Image.open(tmp_path / "turned.png") as photo:
        assert (reranker.pixels(photo) == upright).all()
        assert photo.size == (60, 40)  # the caller's own is as it was
    assert (reranker.pixels(tmp_path / "animated.png") == expected).all()
    assert (reranker.pixels(tmp_path / "deep.png") == reranker.pixels(((deep + 128.0) // 257).astype(np.uint8))).all()


def test_the_picture_shows_the_readout(reranker, paths, monkeypatch):
    monkeypatch.setattr("rrt.picture.STRONGEST", 0)
    picture = np.asarray(pair_picture(reranker, paths[0], paths[1]), float)
    views = [reranker.pixels(path).permute(1, 2, 0).numpy() for path in paths[:2]]
    features = reranker.embed(paths[:2]).maps
    matcher = reranker.network.matcher
    tokens = matcher.encode_queries(features[:1]), matcher.encode_candidates(features[1:])
    row = matcher.attention(*tokens)[0, -1, :, 0].mean(0).detach().numpy()
    patches = [row[1:5], row[6:10]]
    for side, (view, weights) in enumerate(zip(views, patches, strict=True)):
        left = side * (SIDE + GAP)
        for patch, weight in enumerate(weights):
            y, x = divmod(patch, 2)
            half = SIDE // 2
            shown = picture[y * half : (y + 1) * half, left + x * half : left + (x + 1) * half].mean()
            seen = view[y * 32 : (y + 1) * 32, x * 32 : (x + 1) * 32].mean()
            light = 1 - DARKENING * (1 - min(1, weight / max(part.max() for part in patches)))
            assert shown == pytest.approx(light * seen, abs=6)


def test_what_is_told_without_a_search_needs_no_torch():
    code = "import sys; from rrt.__main__ import main; print('torch' in sys.modules); main(['--version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"False\nrrt {rrt.__version__}\n"
