import pytest

from report.summary import status_lines, summary, with_untouched_weights
from report.tables import tables
from tests.utils.logs.folders import config, entry, scalar, training_run, write
from tests.utils.retrieval.test_fitted import RECORD
from utils.logs.runs import Run, read_run

SUM = "logit + cosine + chamfer"


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    """A training in vain, an evaluation of its checkpoint and one of the checkpoint that it started from."""
    write(
        tmp_path / "vain",
        run=entry(),
        config=config(epochs=1, resume="start.pt"),
        info={
            "recall": {"1": 92.67},
            "md5": {"vain.pt": "v", "start.pt": "s"},
            "fusion": RECORD.to_dict(),
        },
        metrics={"val.recall@1": scalar([0, 1], [92.67, 89.33])},
    )
    repository = {"commit": "0123456789abcdef", "dirty": True}
    for name, md5 in (("vain", "v"), ("start", "s")):
        run = entry(name="Rerank (eval)", script="eval_rerank.py") | {"host": {"cpu": "AMD EPYC"}}
        run["experiment"]["repositories"] = [repository, repository]
        recall = 69.5 if name == "start" else 60.0
        write(
            tmp_path / f"eval_{name}",
            run=run,
            config={"dataset": {"data_path": "data/demo", "test_file": "test.txt"}, "resume": f"{name}.pt"},
            info={
                "measures": {"global": {"R@1": 49.0}, "logit": {"R@1": 20.5}, SUM: {"R@1": recall}},
                "gains": {SUM: {"R@1": [20.5, 17.89, 23.17]}},
                "md5": {f"{name}.pt": md5},
                "versions": {"device": "cpu"},
            },
            cout=f"{SUM} (crossfit): weights chosen on the other classes: logit, 10 candidates; logit, 10 candidates\n",
        )
    return [read_run(tmp_path / name) for name in ("vain", "eval_vain", "eval_start")]


def test_the_summary(runs):
    found = summary(runs, [1800])
    assert found["title"] == "Reranking on sop_rerank, demo"
    assert found["result"] == (
        f"By {SUM}, 69.50 % of the queries have a photo of their product first (R@1), by global 49.00 %: +20.50 "
        f"(+17.89 to +23.17) points. It is the best of 4 rankings, in {runs[2].folder}."
    )
    assert dict(found["facts"]) == {
        "Data set": "sop_rerank, demo",
        "Date": "2026-01-02 03:00 to 2026-01-03 04:05 UTC",
        "Commit": "0123456789 and changed files",
        "Machine": "AMD EPYC",
        "Queries": "1,800",
        "Runs": "3 COMPLETED",
    }
    trained = summary(runs[:1], [])
    assert trained["result"] == f"The best R@1 in validation is 92.67 %, after epoch 0 of {runs[0].folder}."
    assert [name for name, _ in trained["facts"]] == ["Data set", "Date", "Runs"]


def test_what_has_not_ended_well_is_said_first(tmp_path, runs):
    failed = entry("FAILED") | {"fail_trace": ["Traceback\n", "DivergedError: the loss is nan\n"]}
    write(tmp_path / "failed", run=failed, config=config(epochs=9))
    training_run(tmp_path / "silent", status="RUNNING")
    lines = status_lines([*runs, *(read_run(tmp_path / name) for name in ("failed", "silent", "none"))])
    assert lines == [
        f"{tmp_path}/vain: untouched weights, as no epoch reached the validation before training",
        f"{tmp_path}/failed: FAILED, it ended with an error; DivergedError: the loss is nan",
        f"{tmp_path}/silent: STALE, it has not ended, and has been silent for five minutes; 2 of 2 epochs are trained",
    ]


def test_untouched_and_fitted_weights(tmp_path, runs):
    assert with_untouched_weights(runs) == {tmp_path / "vain", tmp_path / "eval_vain"}
    rankings, table, fitted = tables(runs, [])
    marks = [row[rankings["columns"].index("weights")] for row in rankings["rows"]]
    assert marks == ["untouched"] * 3 + [""] * 3
    assert [row[table["columns"].index("weights")] for row in table["rows"]] == ["untouched", "untouched", ""]
    own = [f"{RECORD.fitted_on}: {RECORD.num_queries:,} photos of {RECORD.num_classes:,} classes"]
    assert fitted["rows"][0][:4] == [f"{tmp_path}/vain", "own", str(RECORD.weights), *own]
    assert fitted["rows"][1][1:4] == [SUM, "logit, 10 candidates", "the other classes of test.txt"]
    assert len(fitted["rows"]) == 3
