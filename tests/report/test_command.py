import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import report.command
from report.command import main
from report.reliability import reliability_points
from tests.conftest import draw_photo
from tests.report.conftest import HOSTILE
from tests.utils.logs.folders import entry, training_run, write
from utils.logs.__main__ import main as logs_main
from utils.logs.runs import read_run
from utils.retrieval.ranking import Candidates
from utils.retrieval.results import Labels, keep_scores


def written(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])  # type: ignore[index]


def gallery_of(run: Path, folder: Path) -> dict:
    """The gallery of a page of one run, made in a folder."""
    assert main([str(run), "--out", str(folder / "a.html")]) == 0
    (gallery,) = written(folder / "a.html")["galleries"]
    return gallery


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Files that are written back after the block."""
    before = [(path, path.read_bytes()) for path in paths]
    try:
        yield
    finally:
        for path, content in before:
            path.write_bytes(content)


def test_replaced_photos_are_told_by_their_logits(evaluation, tmp_path):
    photo = evaluation.data / f"{HOSTILE}/0_0.JPG"
    notes = []
    with kept(photo):
        for replaced in (False, True):
            if replaced:
                draw_photo(photo, 3, 5)
            gallery = gallery_of(evaluation.run, tmp_path)
            notes.append([note for note in gallery["notes"] if note.startswith("WARNING")])
            pairs = [pair for query in gallery["queries"] for pair in query["neighbours"] if "attention" in pair]
            assert all(abs(pair["attention"]["logit"] - pair["logits"]) < 0.001 for pair in pairs) and pairs
    assert notes[0] == []
    (warning,) = notes[1]
    assert re.match(r"WARNING: \d+ pairs are not what was evaluated: their recomputed logits.*0_0\.JPG", warning)


def test_a_page_of_trainings(trainings, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert main([str(trainings), str(tmp_path / "none"), "--out", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{page} shows 2 runs, in 0.1 MB")
    assert f"{tmp_path}/none: no such folder" in err
    (chart,) = written(page)["curves"]
    assert chart["title"] == "Rerank (train)" and b"<svg" in base64.b64decode(chart["svg"])
    (line,) = written(page)["problems"]
    assert line.startswith("No gallery: none of the runs is an evaluation of reranking; eval_rerank.py makes one")


def test_what_cannot_be_written_or_read(trainings, tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path), "--out", str(tmp_path / "a.html")]) == 1
    assert "no run could be read" in capsys.readouterr().err
    assert main([str(trainings), "--out", str(tmp_path)]) == 1
    assert "could not be written" in capsys.readouterr().err
    monkeypatch.setattr(report.command, "MAX_PAGE_BYTES", 1000)
    assert main([str(trainings), "--out", str(tmp_path / "a.html")]) == 1
    assert "give fewer runs" in capsys.readouterr().err and not (tmp_path / "a.html").exists()


def test_an_evaluation_without_its_files_says_what_makes_them(evaluation, tmp_path):
    (evaluation.folder / "scores.npz").unlink()
    assert main([str(evaluation.run), "--out", str(tmp_path / "a.html")]) == 0
    page = written(tmp_path / "a.html")
    assert page["galleries"] == [] and len(page["tables"]) == 3
    assert "run eval_rerank.py with this temp_dir first" in page["problems"][0]


def test_photos_that_cannot_be_read_are_grey(evaluation, tmp_path):
    broken, gone = (f"{HOSTILE}/0_{i}.JPG" for i in (0, 1))
    with kept(evaluation.data / broken, evaluation.data / gone):
        (evaluation.data / broken).write_bytes((evaluation.data / broken).read_bytes()[:300])
        (evaluation.data / gone).unlink()
        assert main([str(evaluation.run), "--out", str(tmp_path / "a.html")]) == 0
    page = written(tmp_path / "a.html")
    problems = {photo["path"][-7:]: photo["problem"] for photo in page["photos"] if "problem" in photo}
    assert problems.keys() == {"0_0.JPG", "0_1.JPG"}
    assert "cannot be read" in problems["0_0.JPG"] and "does not exist" in problems["0_1.JPG"]
    assert "a photo cannot be read" in page["galleries"][0]["notes"][-1]
    assert len(page["galleries"][0]["queries"]) == 20


def test_many_queries_are_sampled(tmp_path, monkeypatch):
    n, rng = 1000, np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    paths, classes = [f"{i}.jpg" for i in range(n)], [i // 5 for i in range(n)]
    (tmp_path / "data" / "test.txt").write_text("\n".join(map("{},{}".format, paths, classes)))
    labels = Labels(np.array(classes), np.array(classes), True)
    neighbours = (np.arange(n)[:, None] + 1 + np.argsort(rng.random((n, 12)))) % n
    scores = (rng.random((n, 12)).astype(np.float32) for _ in range(3))
    candidates = Candidates(neighbours, *scores)
    config = {"temp_dir": str(tmp_path), "dataset": {"data_path": str(tmp_path / "data"), "test_file": "test.txt"}}
    write(
        tmp_path / "1",
        run=entry(script="eval_rerank.py"),
        config=config,
        info={"scores_md5": keep_scores(tmp_path, candidates, labels)},
    )
    gallery = gallery_of(tmp_path / "1", tmp_path)
    assert len(gallery["queries"]) == 200
    assert gallery["sample"].startswith("200 of 1,000 queries, drawn at random (seed 0): in turn one that is gained")
    assert [sum(counts) for counts in gallery["counts"].values()] == [n] * 4
    assert "No attention: resume=None" in gallery["notes"][0]
    monkeypatch.setattr(report.command, "MAX_PHOTO_BYTES", 30_000)
    gallery = gallery_of(tmp_path / "1", tmp_path)
    assert 0 < len(gallery["queries"]) < 50


def test_reliability_of_an_evaluation(evaluation, tmp_path):
    path = evaluation.run / "info.json"
    kept, info = path.read_text(), json.loads(path.read_text())
    bins = [{"predicted": 0.05, "observed": 0.1, "num_pairs": 90}, {"predicted": 0.9, "observed": 0.8, "num_pairs": 10}]
    for reliability, points in ((bins, [(0.05, 0.1, 90), (0.9, 0.8, 10)]), ([{"predicted": "x"}], []), (3, [])):
        path.write_text(json.dumps(info | {"matches": {"reliability": reliability}}))
        assert reliability_points(read_run(evaluation.run)) == points
        assert main([str(evaluation.run), "--out", str(tmp_path / "page.html")]) == 0
        svg = written(tmp_path / "page.html")["reliability"]
        assert (svg is not None) == bool(points)
        if svg:
            assert b"predicted probability of one product" in base64.b64decode(svg)
    path.write_text(kept)


def test_a_chart_for_each_kind_of_training_with_paths_of_the_working_folder(tmp_path, monkeypatch):
    for name, objective in (("a", "bce"), ("b", "joint"), ("c", "joint")):
        training_run(tmp_path / name, objective=objective)
    monkeypatch.chdir(tmp_path)
    assert main([str(tmp_path), "--out", "a.html"]) == 0
    assert str(tmp_path) not in Path("a.html").read_text()
    page = written(Path("a.html"))
    kinds = ["Rerank (train), objective=bce", "Rerank (train), objective=joint"]
    assert [chart["title"] for chart in page["curves"]] == kinds
    drawn = [base64.b64decode(chart["svg"]).decode() for chart in page["curves"]]
    assert [[name for name in "abc" if f">{name}</text>" in svg] for svg in drawn] == [["a"], ["b", "c"]]
    assert page["folders"] == ["a", "b", "c"]


def test_hostile_texts_of_runs(tmp_path):
    run = entry("FAILED", name=HOSTILE) | {"fail_trace": [HOSTILE], "host": {"cpu": HOSTILE}}
    write(tmp_path / "failed", run=run, config={"dataset": {"data_path": HOSTILE}})
    for name, value in (("list", [1]), ("text", "x"), ("none", None)):
        odd = {"fail_trace": value, "host": value}
        write(tmp_path / name, run=entry() | odd, config={"epochs": value}, info={"md5": value, "fusion": value})
    training_run(tmp_path / HOSTILE / "1", seed=HOSTILE, objective=HOSTILE, dataset={"name": HOSTILE})
    assert read_run(tmp_path / HOSTILE / "1").losses
    assert main([str(tmp_path), "--out", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_text().count("<script") == 2


def test_the_former_command_names_the_new_one(capsys):
    assert logs_main(["report", "logs/demo", "--out", "page.html"]) == 2
    assert capsys.readouterr().err == "the page has a command of its own: python -m report RUN... --out FILE\n"
