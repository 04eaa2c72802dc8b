import base64
import shutil

import numpy as np
import pytest
import torch

from report.attention import FULL, Attention, mutual_pairs
from report.evaluated import read_evaluated
from tests.utils.retrieval.test_fitted import RECORD
from utils.errors import InputError
from utils.io.kept_fusion import add_fusion
from utils.logs.runs import read_run


def test_a_pair(evaluation):
    evaluated = read_evaluated(read_run(evaluation.run))
    attention = Attention(evaluated)
    photos = [evaluation.data / path for path in evaluated.queries.paths[:2]]
    found = attention.of_pair(*photos)
    assert found["logit"] == pytest.approx(float(evaluated.candidates.logits[0, 0]), abs=1e-3)
    assert found["views"] == [0, 1] and attention.of_pair(*photos[::-1])["views"] == [1, 0]
    weights = np.frombuffer(base64.b64decode(found["weights"]), "<u2").reshape(2, 1 + 4, 2 + 4 + 4) / FULL
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-3)
    np.testing.assert_allclose(weights[:, 1:].mean(axis=1), weights[:, 0], atol=1e-4)
    tokens = attention.model.matcher.encode_queries(attention.maps[0]), None
    with torch.no_grad():
        tokens = tokens[0], attention.model.matcher.encode_candidates(attention.maps[1])
        expected = attention.model.matcher.attention(*tokens)[0, :, :, 0]
    np.testing.assert_allclose(weights[:, 1:], expected, atol=1e-4)
    assert [len(layer) for layer in found["pairs"]] == [5]  # of the first of two layers: the mean, and four heads
    a, b = (torch.nn.functional.normalize(maps[0].flatten(1), dim=0).T for maps in attention.maps)
    cosines = (a @ b.T).numpy()
    best = {(i, j) for i, j in enumerate(cosines.argmax(1))} | {(i, j) for j, i in enumerate(cosines.argmax(0))}
    shares = {
        (i, j): cosines[i, j] * ((cosines[i].argmax() == j) / 8 + (cosines[:, j].argmax() == i) / 8) for i, j in best
    }
    assert len(found["matches"]) == min(len(best), 6)
    for i, j, share in found["matches"]:
        assert share == pytest.approx(shares[i, j], abs=1e-4) and share >= sorted(shares.values())[-6:][0] - 1e-4


def test_pairs_of_patches_that_attend_to_each_other():
    weights = torch.zeros(6, 6)  # [CLS] two query patches [SEP] two candidate patches
    weights[1, 4], weights[4, 1] = 0.9, 0.2  # query patch 0 and candidate patch 0
    weights[2, 5], weights[5, 2] = 0.3, 0.4  # 1 and 1
    weights[1, 5] = 0.8  # not returned
    assert mutual_pairs(weights, 2)[:2] == [(1, 1, 0.3), (0, 0, 0.2)]
    assert [pair[2] for pair in mutual_pairs(weights, 2)[2:]] == [0, 0]


def test_another_checkpoint_is_refused(evaluation, tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(1)}, other)
    config, info = evaluation.run / "config.json", evaluation.run / "info.json"
    resume = read_run(evaluation.run).config["resume"]
    for path in (config, info):
        path.write_text(path.read_text().replace(resume, str(other)))
    with pytest.raises(InputError, match="is not the one that was evaluated"):
        Attention(read_evaluated(read_run(evaluation.run)))


def test_a_checkpoint_that_got_weights_later_is_the_same(evaluation, tmp_path):
    resume, weighted = read_run(evaluation.run).config["resume"], tmp_path / "weighted.pt"
    shutil.copyfile(resume, weighted)
    add_fusion(weighted, RECORD.to_dict())
    for name in ("config.json", "info.json"):
        path = evaluation.run / name
        path.write_text(path.read_text().replace(resume, str(weighted)))
    evaluated = read_evaluated(read_run(evaluation.run))
    pair = Attention(evaluated).of_pair(*(evaluation.data / path for path in evaluated.queries.paths[:2]))
    assert pair["logit"] == pytest.approx(float(evaluated.candidates.logits[0, 0]), abs=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ert_nhead": 4', '"ert_nhead": 3', "no multiple of model.ert_nhead=3"),
        ('"ert_dim_feedforward": 32', '"ert_dim_feedforward": 64', "does not fit this model"),
        ('"arch"', '"architecture"', "model.arch=None: give a text"),
        ('"resume": "', '"resume": "gone', "does not exist"),
    ],
)
def test_settings_that_do_not_fit(evaluation, old, new, message):
    config = evaluation.run / "config.json"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        Attention(read_evaluated(read_run(evaluation.run)))
