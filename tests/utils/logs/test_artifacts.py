import hashlib

from utils.logs import runs
from utils.logs.json_reader import RunFiles
from utils.logs.runs import check_artifacts


def problems(folder, names, **sums):
    files = RunFiles(folder)
    check_artifacts(files, {"artifacts": names}, {"md5": sums} if sums else {})
    return list(files.problems)


def test_missing_artifacts(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"weights")
    assert problems(tmp_path, ["a.pt"]) == []
    assert problems(tmp_path, ["a.pt", "b.pt", "\0", 3]) == ["artifact b.pt is missing", "artifact \0 is missing"]
    assert problems(tmp_path, "b.pt") == []
    (problem,) = problems(tmp_path, ["x" * 300])
    assert problem.endswith("cannot be read: File name too long")


def test_artifacts_that_changed(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"weights")
    digest = hashlib.md5(b"weights").hexdigest()
    changed = ["artifact a.pt is not the file whose MD5 sum info.json names"]
    assert problems(tmp_path, ["a.pt"], **{"logs/1/a.pt": digest}) == []
    assert problems(tmp_path, ["a.pt"], **{"logs/1/a.pt": "0" * 32}) == changed
    assert problems(tmp_path, ["a.pt"], **{"logs/read/a.pt": "0" * 32, "logs/1/a.pt": digest}) == []
    assert problems(tmp_path, ["a.pt"], **{"logs/1/b.pt": "0" * 32}) == []
    monkeypatch.setattr(runs, "LARGEST_CHECKED", 3)
    assert problems(tmp_path, ["a.pt"], **{"logs/1/a.pt": "0" * 32}) == []
