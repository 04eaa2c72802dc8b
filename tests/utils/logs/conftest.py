import pytest

from tests.utils.logs.folders import published_run, training_run
from utils.logs.runs import find_run_folders, read_run


@pytest.fixture
def three_runs(tmp_path):
    """Two seeds and a published run."""
    training_run(tmp_path / "1", seed=1, best=80.0)
    training_run(tmp_path / "2", seed=2, best=83.0)
    published_run(tmp_path / "3")
    return [read_run(folder) for folder in find_run_folders(tmp_path)]
