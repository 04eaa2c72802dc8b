import pytest

from tests.utils.logs.folders import entry, write
from utils.errors import InputError
from utils.logs.plots import epoch_means, plot_runs
from utils.logs.runs import read_run


def test_epoch_means():
    assert epoch_means([(0.0, 4.0), (0.5, 2.0), (1.0, 1.0), (1.5, 0.5)]) == [(0.5, 3.0), (1.5, 0.75)]


def test_plot(three_runs, tmp_path):
    for name, start in (("plots/curves.png", b"\x89PNG\r\n\x1a\n"), ("curves.pdf", b"%PDF")):
        plot_runs(three_runs, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert (tmp_path / name).stat().st_size > 5000


def test_plots_that_cannot_be_drawn(three_runs, tmp_path):
    with pytest.raises(InputError, match=r"curves\.doc was not drawn: its ending"):
        plot_runs(three_runs, tmp_path / "curves.doc")
    evaluation = read_run(write(tmp_path / "4", run=entry(), config={}, info={"recall": {"1": 80.7}}))
    with pytest.raises(InputError, match="none of the runs has logged"):
        plot_runs([evaluation], tmp_path / "curves.png")
    assert not list(tmp_path.glob("curves*"))
