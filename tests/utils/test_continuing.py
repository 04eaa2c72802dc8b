import pytest
import torch

from tests.faults import fill_disk, names
from tests.fuzz import ABOUT, tiny_state
from utils.continuing import TrainingFiles, read_last, restore
from utils.errors import InputError


def test_what_cannot_be_written_is_tried_again(tmp_path, monkeypatch, capsys):
    state = tiny_state()
    files = TrainingFiles(tmp_path / "c.pt", ABOUT)
    files.save_last(state)
    before, best = (tmp_path / "last.pt").read_bytes(), state.model.conv1.weight.detach().clone()
    with monkeypatch.context() as patch:
        fill_disk(patch, ".part", 100)
        files.save_best(state)
        state.iteration = 1
        files.save_last(state)
        assert names(tmp_path) == ["last.pt"] and (tmp_path / "last.pt").read_bytes() == before
        with pytest.raises(InputError, match=r"c\.pt, \S+last\.pt could not be written \(see above\)"):
            files.check()
    assert capsys.readouterr().out.count("No space left on device; what stood there is kept; training goes on") == 3
    torch.nn.init.zeros_(state.model.conv1.weight)  # training has gone on
    files.save_last(state)
    files.check()
    assert torch.equal(torch.load(tmp_path / "c.pt", weights_only=True)["state"]["conv1.weight"], best)
    other = tiny_state()
    restore(other, read_last(tmp_path))
    assert other.iteration == 1 and not other.model.conv1.weight.any()
