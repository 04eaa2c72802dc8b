import csv
from io import StringIO

import pytest

from tests.utils.logs.folders import config, entry, training_run, write
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables, fixed_table
from utils.text import markdown_table, markdown_text, text_table


def test_text(three_runs):
    runs, title, groups = as_tables(three_runs, fixed_table).rstrip("\n").split("\n\n")
    header, first, _, third = runs.splitlines()
    assert header.split("  ")[0] == "folder" and " ".join(header.split()[1:]) == (
        "seed R@1 best best epoch R@1 last duration status group"
    )
    assert first.split() == [
        str(three_runs[0].folder),
        *("1", "80.00", "1", "79.00", "25:05:06", "COMPLETED", "1"),
    ]
    assert third.split()[-5:] == ["85.65", "2", "85.61", "25:05:06", "COMPLETED"]
    assert "mean ± sample standard deviation" in title
    assert "81.50 ± 2.12  80.50 ± 2.12" in groups
    assert len({line.index("COMPLETED") for line in runs.splitlines()[1:]}) == 1


def test_markdown(three_runs):
    tables = as_tables(three_runs, markdown_table, "## ")
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    runs, groups = lines[:5], lines[5:]
    assert {line.count("|") for line in runs} == {15}
    assert {line.count("|") for line in groups} == {10}
    assert set(runs[1]) == set(groups[1]) == {"|", "-", " "}
    assert groups[2].startswith("| 1 | 2 | Rerank (train) | sop_rerank | 1, 2 | 81.50 ± 2.12 |")
    assert markdown_table([{"a|b": "x|y", "c": r"<b>\|`&amp;"}]).splitlines() == [
        r"| a\|b | c |",
        "| --- | --- |",
        r"| x\|y | &lt;b&gt;\\\|\`&amp;amp; |",
    ]


def test_what_could_not_be_read_in_markdown(tmp_path):
    write(tmp_path / "<script>`|`" / "1", run=entry(), config=config())
    (tmp_path / "<script>`|`" / "1" / "run.json").unlink()
    runs = [read_run(folder) for folder in find_run_folders(tmp_path)]
    line = as_tables(runs, markdown_table, "## ", markdown_text).rstrip("\n").split("\n")[-1]
    assert line.startswith(rf"- {tmp_path}/&lt;script&gt;\`\|\`/1: ")


def test_csv(three_runs):
    first, second, third = csv.DictReader(StringIO(as_csv(three_runs)))
    assert (first["R@1 best"], first["R@10 last"], first["best epoch"]) == ("80.0", "93.0", "1")
    assert (first["duration_s"], first["seed"], first["status"]) == ("90306", "1", "COMPLETED")
    assert first["n"] == second["n"] == "2"
    assert float(second["R@1 best mean"]) == 81.5
    assert float(second["R@1 best sd"]) == pytest.approx(4.5**0.5)
    assert float(second["R@1 last mean"]) == 80.5
    assert (third["R@1 best"], third["group"], third["n"], third["R@1 best sd"]) == ("85.65", "", "", "")


def test_rankings(tmp_path):
    measures = {"global": {"R@1": 50.0, "MRR": 60.0}, "logit": {"R@1": 61.25, "MRR": 70.0}, "b": {}}
    info = {"recall": {"1": 50.0}, "measures": measures, "gains": {"logit": {"R@1": [11.25, 9.0, 13.5]}}}
    write(tmp_path / "1", run=entry(), config=config(), info=info)
    training_run(tmp_path / "2")
    table = as_tables([read_run(folder) for folder in find_run_folders(tmp_path)], text_table)
    *_, title, rankings = table.rstrip("\n").split("\n\n")
    assert title == "Rankings of evaluations, in %, with the 95 % interval of the change"
    header, unknown, first, second = (line.split() for line in rankings.splitlines())
    assert header == ["folder", "ranking", "R@1", "MRR", "R@1", "over", "global"]
    assert first[1:] == ["global", "50.00", "60.00"]
    assert second[1:] == ["logit", "61.25", "70.00", "+11.25", "(+9.00", "to", "+13.50)"]
    assert unknown[1:] == ["b"]
