from pathlib import Path

from utils.logs.fitting import fitted_table
from utils.text import text_table, width


def row(folder, **changes):
    recalls = {f"R@{k} {side}": 81.25 for side in ("best", "last") for k in (1, 10, 100)}
    return {"folder": Path(folder), "script": "eval.py", "dataset": "sop", "seed": 1, **recalls, "note": None} | changes


def test_narrow_tables_stay_as_they_are():
    rows = [{"folder": Path(f"logs/{name}"), "script": "eval.py", "empty": None} for name in ("1", "x" * 70)]
    assert fitted_table(rows) == text_table(rows)


def test_what_all_rows_share_is_said_once():
    rows = [row(f"logs/{'long' * 5}/{seed}", seed=seed) for seed in (1, 20)]
    assert fitted_table(rows).splitlines() == [
        "script: eval.py",
        "dataset: sop",
        "folders are below logs/longlonglonglonglong",
        "",
        "folder  seed  R@1 best  R@10 best  R@100 best  R@1 last  R@10 last  R@100 last",
        "1          1     81.25      81.25       81.25     81.25      81.25       81.25",
        "20        20     81.25      81.25       81.25     81.25      81.25       81.25",
    ]


def test_names_of_columns_are_set_in_lines():
    assert fitted_table([row("logs/" + "a" * 40, experiment="Rerank (train)")]).splitlines() == [
        "script: eval.py",
        "dataset: sop",
        "experiment: Rerank (train)",
        "",
        "                                                       R@1   R@10  R@100    R@1   R@10  R@100",
        "folder                                         seed   best   best   best   last   last   last",
        "logs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa     1  81.25  81.25  81.25  81.25  81.25  81.25",
    ]


def test_texts_are_shortened_in_the_middle():
    table = fitted_table([row("logs/" + "a" * 80 + "/1"), row("/tmp/" + "b" * 80 + "/2")]).splitlines()
    assert table[:3] == ["script: eval.py", "dataset: sop", ""]
    assert table[-2:] == [
        f"logs/{'a' * 21}…{'a' * 23}/1     1  81.25  81.25  81.25  81.25  81.25  81.25",
        f"/tmp/{'b' * 21}…{'b' * 23}/2     1  81.25  81.25  81.25  81.25  81.25  81.25",
    ]
    assert {width(line) for line in table[-2:]} == {100}


def test_columns_are_left_out_and_named():
    rows = [row(f"{i}", script="s" * 20 * i, dataset="d" * 20 * i, experiment="e" * 20 * i) for i in (1, 2)]
    table = fitted_table(rows).splitlines()
    assert table[0] == "left out, see --format markdown: script, experiment"
    assert table[3].split() == ["folder", "dataset", "seed", *["best"] * 3, *["last"] * 3]
    assert max(map(width, table)) <= 100


def test_names_of_rows_stay_different():
    names = [f"{'a' * 20}{i}{'b' * 20}" for i in (1, 2)]
    rows = [{"folder": Path(name)} | {f"R@{k}": 50.0 for k in range(1, 20)} for name in names]
    first, second = fitted_table(rows).splitlines()[-2:]
    assert first.split()[0] != second.split()[0]
    assert max(width(first), width(second)) <= 100


def test_any_table_fits():
    wide = {f"R@{k} {side}": 50.0 for side in ("best", "last") for k in range(1, 101)}
    for text in ("x" * 10_000, "漢" * 300, "e\u0301" * 500):
        rows = [{"folder": Path(f"{text}{i}"), "experiment": text * i, "seed": 10**200} | wide for i in (1, 2)]
        assert max(map(width, fitted_table(rows).splitlines())) <= 100
        assert max(map(width, fitted_table(rows[:1]).splitlines())) <= 100
