from report.curves import MOST_POINTS, curves, thinned
from utils.logs.groups import group_runs
from utils.logs.runs import find_run_folders, read_run


def test_runs_and_their_mean_over_seeds(trainings):
    runs = [read_run(folder) for folder in find_run_folders(trainings)]
    first, second, mean = curves(runs, group_runs(runs))
    assert first["loss"] == second["loss"] == [(0.5, 3.0), (1.5, 0.75)]
    assert first["recalls"]["1"] == [(0, 50.0), (1, 81.0), (2, 80.0)]
    assert mean["name"] == "group 1: mean of 2 seeds" and mean["files"] == first["files"] + second["files"]
    assert [(x, round(y, 4), round(sd, 4)) for x, y, sd in mean["recalls"]["1"]] == [
        (0, 50.0, 0.0),
        (1, 81.5, 0.7071),
        (2, 80.5, 0.7071),
    ]


def test_long_curves_are_thinned_to_means():
    points = [(float(i), float(i)) for i in range(2 * MOST_POINTS + 1)]
    assert len(thinned(points)) <= MOST_POINTS
    assert thinned(points)[:2] == [(1.0, 1.0), (4.0, 4.0)]
    assert thinned(points[:3]) == points[:3] and thinned([]) == []
