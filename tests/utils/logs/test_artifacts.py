import json

from tests.utils.logs.folders import entry, training_run
from utils.logs.runs import read_run


def test_missing_artifacts(tmp_path):
    folder = training_run(tmp_path / "1")
    (folder / "a.pt").write_bytes(b"weights")
    for names, problems in ((["a.pt"], []), (["a.pt", "b.pt"], ["artifact b.pt is missing"])):
        (folder / "run.json").write_text(json.dumps(entry() | {"artifacts": names}))
        run = read_run(folder)
        assert (run.status, run.best[1], run.problems) == ("COMPLETED", 81.0, problems)
