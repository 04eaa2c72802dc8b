import os
import signal
from pathlib import Path

import pytest
import torch

from tests.faults import fill_disk, names
from tests.fuzz import ABOUT, tiny_state
from utils.errors import InputError
from utils.runtime.signals import Interrupted, ended_by_signals
from utils.training.resume import (
    TrainingFiles,
    check_continues,
    read_last,
    restore,
    restore_random_state,
    run_signature,
)


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


def test_a_signal_while_an_older_save_is_made_up_for(tmp_path, monkeypatch):
    state, files = tiny_state(), TrainingFiles(tmp_path / "c.pt", ABOUT)
    with monkeypatch.context() as patch:
        fill_disk(patch, ".part", 100)
        files.save_best(state)
    state.iteration = 1
    plain = Path.replace

    def replace(path: Path, target: Path) -> None:
        plain(path, target)
        if target.name == "c.pt":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Interrupted), ended_by_signals():
        files.save_last(state)
    assert names(tmp_path) == ["c.pt", "last.pt"]
    last = read_last(tmp_path)
    assert last is not None and last["iteration"] == 1


def test_pieces_of_another_size_alter_a_run_by_rounding_alone():
    about = [run_signature({"lr": lr, "micro_batch": size}, [], "cpu") for lr, size in ((1, None), (1, 3), (2, 3))]
    check_continues({"about": about[0]}, about[1])
    with pytest.raises(InputError, match="lr=2, not 1"):
        check_continues({"about": about[0]}, about[2])


def test_ingredients_tell_which_settings_may_change():
    about = [run_signature({"data": {"path": path, "size": 1}}, [], "cpu", {"data.path"}) for path in "ab"]
    check_continues({"about": about[0]}, about[1])
    with pytest.raises(InputError, match=r"data\.path='b', not None\. Set"):
        check_continues({"about": about[0]}, run_signature({"data": {"path": "b", "size": 1}}, [], "cpu"))


def test_weights_that_are_not_finite_are_not_taken_up_again(tmp_path):
    """A network's fused ReLU may hide them."""
    state = tiny_state()
    state.model.conv1.weight.data[0, 0] = torch.nan
    TrainingFiles(tmp_path / "c.pt", ABOUT).save_last(state)
    with pytest.raises(InputError, match=r"last\.pt holds NaN or infinite numbers in 1 tensors \(conv1\.weight\)"):
        restore(tiny_state(), read_last(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("random_state", []), ("random_state", [torch.zeros(3)]), ("optimizer", "exp_avg")],
)
def test_a_run_that_is_damaged(tmp_path, key, value):
    state = tiny_state()
    TrainingFiles(tmp_path / "c.pt", ABOUT).save_last(state)
    content = read_last(tmp_path)
    assert content is not None
    if key == "optimizer":
        content[key]["state"] = {0: {value: torch.zeros(3), "step": torch.tensor(1.0)}}
    else:
        content[key] = value
    with pytest.raises(InputError, match=r"last\.pt (holds no random state|does not fit this run)"):
        restore(state, content)
        restore_random_state(content)
