import json
import math

import numpy as np
import pytest
import torch

from tests.utils.retrieval.test_fusion import saturated
from utils.errors import InputError
from utils.retrieval.calibration import Calibration, calibrate
from utils.retrieval.crossfit import fit_weights, matches_of
from utils.retrieval.fitted import FittedWeights, fit
from utils.retrieval.measures import changes_of, measures_of
from utils.retrieval.ranking import Weights, fused_scores, ranking_by

CALIBRATION = Calibration(0.5, -3.0, 0.1, 7.25, 0.01, 15000, 60)
RECORD = FittedWeights(1.0, 20.0, 0.0, 50, "val.txt", 300, 60, (1.5, -0.25, 3.0), (4.0, 2.0, 6.0), CALIBRATION)


def test_fit():
    candidates, labels = saturated(0, 6)
    found, fitted = fit(candidates, labels, True, "val.txt"), fit_weights(candidates, labels, True)
    assert found.weights == fitted.overall and found[4:7] == ("val.txt", 300, 60)
    measured = [measures_of(p, *labels[:2], [1], True) for p in (candidates.neighbours, fitted.ranking.positions)]
    change = changes_of(measured[0].ranks, measured[1].ranks, labels.queries, [1])[0]
    assert found.recall_gain == pytest.approx(change.interval, abs=0.02)
    points, low, high = found.precision_gain
    before, after = (row.values["mAP@R"] for row in measured)
    assert points == pytest.approx(after - before, abs=0.011) and 9 < low < points < high < low + 6
    m = found.num_candidates
    scores = fused_scores(candidates, fitted.overall)[:, :m]
    assert found.calibration == calibrate(scores, matches_of(candidates, labels)[:, :m], labels.queries)
    assert found.calibration.num_pairs == 300 * m


def test_fit_where_the_global_ranking_is_best():
    candidates, labels = saturated(0, 0)
    assert math.isinf(fit_weights(candidates, labels, True).overall.cosine)
    found = fit(candidates, labels, True, "val.txt")
    assert found.weights == Weights(0, 1, 0, 30)
    assert (ranking_by(candidates, found.weights).positions == candidates.neighbours).all()
    assert found.recall_gain[0] >= -0.4 and found.calibration.slope > 0


def test_queries_without_others_do_not_count_for_precision():
    candidates, labels = saturated(0, 6)
    alone = labels._replace(queries=np.append(labels.queries, 60), gallery=np.append(labels.gallery, 60))
    more = type(candidates)(*(np.concatenate([array, array[:1]]) for array in candidates))
    found, before = fit(more, alone, True, "val.txt"), fit(candidates, labels, True, "val.txt")
    assert found.num_queries == 301 and found.num_classes == 61
    ranked = fit_weights(more, alone, True).ranking.positions
    values = [measures_of(p, *alone[:2], [1], True).values["mAP@R"] for p in (more.neighbours, ranked)]
    assert found.precision_gain[0] == pytest.approx(values[1] - values[0], abs=0.011)
    assert before.precision_gain[0] == pytest.approx(found.precision_gain[0], abs=1)


@pytest.mark.parametrize("record", [RECORD, RECORD._replace(calibration=None)])
def test_round_trip(record, tmp_path):
    assert FittedWeights.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    torch.save(record.to_dict(), tmp_path / "record.pt")
    assert FittedWeights.from_dict(torch.load(tmp_path / "record.pt", weights_only=True)) == record


def test_what_is_fitted_is_plain(tmp_path):
    record = fit(*saturated(1, 6), True, "val.txt").to_dict()
    assert FittedWeights.from_dict(json.loads(json.dumps(record))).to_dict() == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine": math.inf}, "weights.cosine=inf"),
        ({"logit": math.nan}, "weights.logit=nan"),
        ({"chamfer": "5"}, "weights.chamfer='5'"),
        ({"logit": True}, "weights.logit=True"),
        ({"chamfer": -1.0}, "weights.chamfer=-1.0: give a number from 0"),
        ({"logit": 0.0, "cosine": 0.0}, "weights of 0 rank nothing"),
        ({"num_candidates": 0}, "weights.num_candidates=0: give a whole number from 1"),
        ({"num_candidates": 2.5}, "weights.num_candidates=2.5"),
        ({"num_queries": -1}, "weights.num_queries=-1"),
        ({"fitted_on": None}, "weights.fitted_on=None: give a text"),
        ({"recall_gain": [1, 2]}, r"weights.recall_gain=\[1, 2\]: give three numbers of points"),
        ({"precision_gain": [1, 2, math.nan]}, "weights.precision_gain"),
        ({"calibration": 3}, "weights.calibration=3: give the numbers of a calibration, or None"),
        ({"calibration": {"slope": 1.0}}, "weights.calibration must be a record of slope, offset"),
        ({"calibration": {**CALIBRATION._asdict(), "slope": math.inf}}, "weights.calibration.slope=inf"),
        ({"calibration": {**CALIBRATION._asdict(), "true_pairs": 2.0}}, "weights.calibration.true_pairs=2.0"),
        ({"colour": 1}, "weights must be a record of logit, cosine"),
    ],
)
def test_damaged_records_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        FittedWeights.from_dict({**RECORD.to_dict(), **changes})


@pytest.mark.parametrize("record", [None, [], {}, {"logit": 1.0}])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(InputError, match="weights must be a record of logit, cosine"):
        FittedWeights.from_dict(record)


def test_a_file_with_a_damaged_record_is_named():
    assert FittedWeights.of_file(None, "x.pt") is None
    assert FittedWeights.of_file(RECORD.to_dict(), "x.pt") == RECORD
    for record in (3, RECORD.to_dict() | {"cosine": "5"}):
        with pytest.raises(InputError, match=r"^x\.pt: weights.*: fit them again, or take another file"):
            FittedWeights.of_file(record, "x.pt")
