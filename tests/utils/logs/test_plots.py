import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.utils.logs.folders import entry, training_run, write
from utils.errors import InputError
from utils.logs.groups import group_runs
from utils.logs.plots import curves, epoch_means, plot_runs
from utils.logs.runs import read_run


def test_epoch_means():
    assert epoch_means([(0.0, 4.0), (0.5, 2.0), (1.0, 1.0), (1.5, 0.5)]) == [(0.5, 3.0), (1.5, 0.75)]


def test_plot(three_runs, tmp_path):
    for name, start in (("plots/curves.png", b"\x89PNG\r\n\x1a\n"), ("curves.pdf", b"%PDF")):
        plot_runs(three_runs, [], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert (tmp_path / name).stat().st_size > 5000


def test_plots_that_cannot_be_drawn(three_runs, tmp_path):
    with pytest.raises(InputError, match=r"curves\.doc was not drawn: its ending"):
        plot_runs(three_runs, [], tmp_path / "curves.doc")
    evaluation = read_run(write(tmp_path / "4", run=entry(), config={}, info={"recall": {"1": 80.7}}))
    with pytest.raises(InputError, match="none of the runs has logged"):
        plot_runs([evaluation], [], tmp_path / "curves.png")
    assert not list(tmp_path.glob("curves*"))


def test_means_over_seeds(three_runs):
    figure = curves(three_runs, group_runs(three_runs))
    assert figure.legends[0].get_texts()[-1].get_text() == "group 1: mean of 2 seeds"
    loss_panel, recall_panel = figure.axes
    assert loss_panel.get_lines()[-1].get_xydata().tolist() == [[0.5, 3.0], [1.5, 0.75]]
    *_, first, _ = recall_panel.get_lines()  # R@1, R@10
    assert first.get_xydata().tolist() == [[0, 50.0], [1, 81.5], [2, 80.5]]
    (band, _) = recall_panel.collections
    assert band.get_paths()[0].get_extents().intervaly.tolist() == pytest.approx([50.0, 81.5 + 4.5**0.5])
    one_seed = curves(three_runs[1:], group_runs(three_runs))
    assert not one_seed.axes[1].collections


def test_the_losses_of_many_iterations_take_little_room(tmp_path):
    losses = [(i / 50_000, math.sin(i) + 2) for i in range(100_000)]
    run = replace(read_run(training_run(tmp_path / "1")), losses=losses)
    plot_runs([run], [], tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size < 200_000


def test_texts_of_an_svg_stay_texts(tmp_path):
    plot_runs([read_run(training_run(tmp_path / "漢字"))], [], tmp_path / "curves.svg")
    assert "/漢字</text>" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_runs_and_recalls_are_told_apart(tmp_path):
    run = read_run(training_run(tmp_path / "1"))
    run = replace(run, validations={0: dict.fromkeys(range(1, 7), 50.0), 1: {1: 60.0}})
    loss_panel, recall_panel = curves([replace(run, folder=Path(str(i))) for i in range(80)], []).axes
    styles = [(line.get_color(), line.get_marker()) for line in loss_panel.get_lines()[1::2]]
    assert len(set(styles)) == 80
    assert [(line.get_color(), line.get_marker()) for line in recall_panel.get_lines()[::6]] == styles
    assert [line.get_linestyle() for line in recall_panel.get_lines()[:6]] == ["-", "--", "-.", ":", "-", "--"]
    assert [text.get_text() for text in recall_panel.get_legend().get_texts()] == [f"R@{k}" for k in range(1, 7)]


def test_hostile_names_of_runs(tmp_path):
    run = read_run(training_run(tmp_path / "1"))
    names = ("W" * 4000, "$x$ \\frac{", "caf\udce9\x1b[2J")
    figure = curves([replace(run, folder=Path(name)) for name in names], [])
    figure.savefig(tmp_path / "curves.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "W" * 36 + "…" + "W" * 35,
        "\\$x\\$ \\frac{",
        r"caf\udce9\x1b[2J",
    ]
