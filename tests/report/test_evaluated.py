import json
import re
import shutil

import numpy as np
import pytest

from report.command import main
from report.evaluated import read_evaluated
from tests.report.conftest import evaluate
from tests.utils.retrieval.test_fitted import RECORD
from utils import pickle_load
from utils.errors import InputError
from utils.io.kept_fusion import add_fusion
from utils.logs.__main__ import main as logs_main
from utils.logs.runs import read_run
from utils.retrieval.results import load_scores, save_scores


def test_rankings_and_ranks(evaluation):
    evaluated = read_evaluated(read_run(evaluation.run))
    assert list(evaluated.ranks) == ["global", "logit", "chamfer + cosine", "logit + cosine + chamfer"]
    assert evaluated.rankings.written == "logit"
    rankings, labels = evaluated.rankings.rankings, evaluated.labels
    for name, ranking in rankings.items():
        matches = labels.gallery[ranking.positions] == labels.queries[:, None]
        assert evaluated.ranks[name].tolist() == matches.argmax(axis=1).tolist()
    np.testing.assert_array_equal(rankings["logit"].positions, pickle_load(evaluation.folder / "nn_inds.pkl"))


FORMER = {"logit": "published", "chamfer + cosine": "chamfer", "logit + cosine + chamfer": "fused"}


def test_a_former_run_folder(evaluation):
    """Its rankings have other names: "chamfer" was what is "chamfer + cosine" now."""
    run = read_run(evaluation.run)
    path = evaluation.run / "info.json"
    info = json.loads(path.read_text())
    for key in ("measures", "gains"):
        info[key] = {FORMER.get(name, name): row for name, row in info[key].items()}
    path.write_text(json.dumps(info))
    former = read_run(evaluation.run)
    assert set(info["measures"]) == {"global", "published", "chamfer", "fused"}
    assert former.rankings == run.rankings and len(run.rankings) == 4
    assert read_evaluated(former).ranks.keys() == run.rankings.keys()


def remove(name):
    return lambda evaluation: (evaluation.folder / name).unlink()


def rewrite(name, old, new):
    def change(evaluation):
        path = evaluation.folder / name
        path.write_text(path.read_text().replace(old, new))

    return change


def other_scores(evaluation):
    candidates, labels = load_scores(evaluation.folder)
    save_scores(evaluation.folder, candidates._replace(cosines=candidates.cosines + 1), labels)


CHANGES = {
    "no scores": (remove("scores.npz"), r"scores.npz does not exist: run eval_rerank.py"),
    "another run's scores": (other_scores, r"scores.npz is not of the run in .*: run eval_rerank.py in a temp_dir"),
    "no sum": (rewrite("1/info.json", '"scores_md5"', '"sum"'), r"scores.npz is not of the run in"),
    "no data": (rewrite("1/config.json", '"test.txt"', '"gone.txt"'), r"gone.txt does not exist"),
    "other photos": (rewrite("1/config.json", '"test.txt"', '"four.txt"'), r"scores.npz is of other photos than"),
    "no path": (rewrite("1/config.json", '"data_path": "', '"data_path": 5, "x": "'), r"data_path=5: give a text"),
    "no data set": (rewrite("1/config.json", '"dataset"', '"set"'), r"config.json has no settings of the data set"),
    "an unknown fusion": (rewrite("1/config.json", '"fusion": null', '"fusion": "best"'), r"fusion='best' is unknown"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_belong_together_is_refused(evaluation, change):
    lines = (evaluation.data / "test.txt").read_text(encoding="utf-8").split("\n")
    (evaluation.data / "four.txt").write_text("\n".join(lines[:4]), encoding="utf-8")
    make, message = CHANGES[change]
    make(evaluation)
    with pytest.raises(InputError, match=message):
        read_evaluated(read_run(evaluation.run))


def test_files_moved_with_their_run_folder_are_found(evaluation, tmp_path):
    shutil.move(evaluation.folder, tmp_path / "moved")
    assert tmp_path / "moved" / "scores.npz" in read_evaluated(read_run(tmp_path / "moved" / "1")).files


def test_a_list_that_has_changed_since_is_refused(made, tmp_path, checkpoint):
    """Within a class, so that classes and recalls are the same."""
    data = tmp_path / "data"
    shutil.copytree(made.data, data)
    lines = (data / "test.txt").read_text(encoding="utf-8").split("\n")
    (data / "gallery.txt").write_text("\n".join(lines), encoding="utf-8")
    dataset = {"data_path": str(data), "test_file": ["test.txt", "gallery.txt"]}
    run = read_run(evaluate(tmp_path / "eval", made.root / "nn_inds.pkl", checkpoint, dataset))
    read_evaluated(run)
    for name in ("gallery.txt", "test.txt"):
        (data / name).write_text("\n".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")
        with pytest.raises(InputError, match=rf"{name} is not the one that was evaluated: its MD5 sum differs; run"):
            read_evaluated(run)
        (data / name).write_text("\n".join(lines), encoding="utf-8")


def test_an_evaluation_with_the_checkpoints_own_weights(made, checkpoint, tmp_path, capsys):
    own = RECORD._replace(cosine=2.0, chamfer=0.5, num_candidates=4, calibration=None)
    path = tmp_path / "own.pt"
    shutil.copyfile(checkpoint, path)
    add_fusion(path, own.to_dict())
    run = evaluate(tmp_path / "eval", made.root / "nn_inds.pkl", str(path), {"data_path": str(made.data)}, fusion="own")
    evaluated = read_evaluated(read_run(run))
    assert list(evaluated.ranks) == ["global", "logit", "own", "chamfer + cosine", "logit + cosine + chamfer"]
    assert evaluated.rankings.written == "own"
    written = pickle_load(tmp_path / "eval" / "nn_inds.pkl")
    np.testing.assert_array_equal(evaluated.rankings.rankings["own"].positions, written)

    assert main([str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert "own (logit + 2 * cosine + 0.5 * chamfer, 4 candidates)" in (tmp_path / "a.html").read_text()
    capsys.readouterr()
    info = json.loads((run / "info.json").read_text())
    assert logs_main([str(run)]) == 0
    recall = f"{info['measures']['own']['R@1']:.2f}"
    assert re.search(rf"(?m)^{run}  own +{recall} .* \(\S+ to \S+\)$", capsys.readouterr().out)
    (run / "info.json").write_text(json.dumps(info | {"fusion": {"logit": 1}}))
    with pytest.raises(InputError, match=rf"{run / 'info.json'}: weights must be a record of logit, cosine, chamfer"):
        read_evaluated(read_run(run))
