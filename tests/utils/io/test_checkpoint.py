import io
import os
import resource
import zipfile
from pathlib import Path
from traceback import format_exception

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from tests.faults import limited
from tests.models.test_resnet import new
from tests.narrow import narrow
from utils import pickle_save, state_dict_to_cpu
from utils.errors import InputError
from utils.io.checkpoint import UNKNOWN, TrainingInfo, checkpoint_content, load_weights, save_tensors


def small(num_classes=5, **changes):
    with narrow():
        return new(
            num_classes, **{"arch": "resnet18", "ert_num_encoder_layers": 2, "ert_dim_feedforward": 16} | changes
        )


def randomised(**changes):
    model = small(**changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def assert_same_weights(a, b, but=()):
    others = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, others[name]) or name in but


def assert_refused(path, message):
    """And the model is as it was."""
    model, before = small(), small().state_dict()
    model.load_state_dict(before)
    with pytest.raises(InputError, match=message):
        load_weights(path, model, training=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_saved_and_loaded(tmp_path):
    model, other = randomised(), small()
    for optimizer in (SGD(model.parameters(), 0.1, momentum=0.9), AdamW(model.parameters())):
        scheduler = MultiStepLR(optimizer, [1, 2])
        model(torch.rand(2, 3, 32, 32))[1].sum().backward()
        optimizer.step()
        save_tensors(tmp_path / "run" / "c.pt", checkpoint_content(model, optimizer, scheduler))
        content = torch.load(tmp_path / "run" / "c.pt", weights_only=True)
        assert set(content) == {"state", "optim", "scheduler"}
        assert content["scheduler"]["milestones"] == {1: 1, 2: 1}
        assert {str(tensor.device) for tensor in content["state"].values()} == {"cpu"}
        load_weights(tmp_path / "run" / "c.pt", other, training=False)
        assert_same_weights(model, other)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state": s}, lambda s: {"state": s, "optim": {}, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_forms_of_a_checkpoint(tmp_path, wrap, prefix):
    model, other = randomised(), small()
    torch.save(wrap({prefix + name: tensor for name, tensor in model.state_dict().items()}), tmp_path / "c.pt")
    load_weights(tmp_path / "c.pt", other, training=False)
    assert_same_weights(model, other)
    assert list(state_dict_to_cpu({"module.a._orig_mod.module.b": torch.ones(1)})) == ["a.b"]


def test_a_classifier_of_another_size(tmp_path, capsys):
    model = randomised(num_classes=7)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    for training, said in (
        (False, "left out, evaluation does not need it"),
        (True, "WARNING, the classifier starts anew"),
    ):
        other = small()
        load_weights(tmp_path / "c.pt", other, training)
        output = capsys.readouterr()
        assert "its classifier has 7 classes, the training images 5: " in output.out + output.err
        assert said in output.out + output.err
        assert not other.classifier.weight.any()
        assert_same_weights(model, other, but=("classifier.weight", "classifier.bias"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_local_features": 64},
            r"remap_local\.weight \(64, 512, 1, 1\), expected \(128, .*model\.num_local_features",
        ),
        ({"num_global_features": 64}, r"remap\.weight \(64, 512\), expected \(128, 512\).*model\.num_global_features"),
        ({"num_global_features": 512}, r"tensors missing \(remap\.weight, remap\.bias\).*model\.num_global_features"),
        ({"ert_num_encoder_layers": 3}, r"12 tensors not in the model \(matcher\..*model\.ert_num_encoder_layers"),
        ({"ert_num_encoder_layers": 1}, r"12 tensors missing \(matcher\..*model\.ert_num_encoder_layers"),
        ({"ert_dim_feedforward": 32}, r"of another shape \(matcher.*linear1.*model\.ert_dim_feedforward"),
        ({"ert_normalize_before": True}, r"2 tensors not in the model .*model\.ert_normalize_before"),
        ({"norm_layer": "batch"}, r"3 tensors not in the model \(norm_layer\..*model\.norm_layer"),
        ({"arch": "resnet34"}, r"not in the model \(layer1\.1\.conv1.*model\.arch"),
    ],
)
def test_another_architecture(tmp_path, changes, message):
    torch.save(randomised(**changes).state_dict(), tmp_path / "c.pt")
    assert_refused(tmp_path / "c.pt", rf"checkpoint .*c\.pt does not fit this model: .*{message}")


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, zipped):
    torch.save({"state": Hostile(tmp_path / "ran")}, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"checkpoint .*c\.pt was refused, and no code in it was run: .*system"):
        load_weights(tmp_path / "c.pt", small(), training=False)
    assert not (tmp_path / "ran").exists()


def packed(path):
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member in plain.infolist():
            file.writestr(member.filename, plain.read(member))


def with_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replaced_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


NO_CHECKPOINT = r"is not a checkpoint: expected a dict with 'state'"
UNREADABLE = "could not be read|was refused"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), UNREADABLE),
        (lambda path: path.write_bytes(b"not a checkpoint"), UNREADABLE),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000]), r"c\.pt could not be read"),
        (with_a_flipped_bit, r"c\.pt could not be read: it is damaged in \S+/data/\d+"),
        (packed, r"c\.pt could not be read: its content is packed"),
        (replaced_by_a_pipe, r"c\.pt could not be read: .*it is no file"),
        (Path.unlink, r"checkpoint .*c\.pt does not exist: check resume="),
        (lambda path: pickle_save(path, np.zeros((2, 3), int)), r"no plain checkpoint of tensors \(.*_reconstruct\)$"),
        (lambda path: torch.save(torch.ones(3), path), NO_CHECKPOINT),
        (lambda path: torch.save({}, path), NO_CHECKPOINT),
        (lambda path: torch.save({"state": 3}, path), NO_CHECKPOINT),
        (lambda path: torch.save({"epoch": 3, "loss": 0.1}, path), NO_CHECKPOINT),
    ],
)
def test_not_a_checkpoint(tmp_path, make, message):
    path = tmp_path / "c.pt"
    torch.save(randomised().state_dict(), path)
    make(path)
    with pytest.raises(InputError, match=message) as raised:
        load_weights(path, small(), training=False)
    assert "safe_globals" not in "".join(format_exception(raised.value))  # torch's advice to allow what it holds


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    model = small()
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = MultiStepLR(optimizer, [1])
    save_tensors(tmp_path / "c.pt", checkpoint_content(model, optimizer, scheduler))
    before = (tmp_path / "c.pt").read_bytes()
    told = r"c\.pt could not be written: File too large; what stood there is kept"
    with limited(resource.RLIMIT_FSIZE, 1_000_000), pytest.raises(InputError, match=told):
        save_tensors(tmp_path / "c.pt", checkpoint_content(randomised(), optimizer, scheduler))
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, r"NaN or infinite numbers in 1 tensors \(conv1\.w"),
        ({"bn1.bias": torch.full((64,), 1e300, dtype=torch.float64)}, r"NaN or infinite numbers in 1 tensors \(bn1\.b"),
        ({"bn1.bias": torch.ones(64, dtype=torch.bool)}, r"1 tensor of another number type \(bn1\.bias\)"),
        ({"bn1.bias": torch.ones(64, dtype=torch.int32)}, r"1 tensor of another number type \(bn1\.bias\)"),
        ({"bn1.bias": torch.ones(64, dtype=torch.complex64)}, r"1 tensor of another number type \(bn1\.bias\)"),
        ({"bn1.num_batches_tracked": torch.tensor(1.5)}, r"1 tensor of another number type \(bn1\.num"),
        ({"bn1.bias": torch.ones(64).to_sparse()}, r"could not be read|is not a checkpoint"),
        ({3: torch.ones(64)}, r"is not a checkpoint"),
    ],
)
def test_weights_that_are_no_plain_finite_numbers(tmp_path, changes, message):
    torch.save({"state": randomised().state_dict() | changes}, tmp_path / "c.pt")
    assert_refused(tmp_path / "c.pt", message)


def test_half_precision_weights_are_taken(tmp_path):
    state = randomised().state_dict()
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "c.pt")
    model = small()
    load_weights(tmp_path / "c.pt", model, training=False)
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"].half().float())


def test_settings_that_change_the_answer(tmp_path):
    model = randomised()
    optimizer = AdamW(model.parameters())
    scheduler = MultiStepLR(optimizer, [1])
    origin = TrainingInfo({"ert_nhead": 32, "norm_layer": None}, matcher_trained=True, crop_size=96)
    save_tensors(tmp_path / "c.pt", checkpoint_content(model, optimizer, scheduler, origin))
    assert load_weights(tmp_path / "c.pt", small(), False, {"ert_nhead": 32, "norm_layer": None}) == origin
    assert load_weights(tmp_path / "c.pt", small(), False, {"ert_nhead": 32, "unheard_of": 1}) == origin
    with pytest.raises(InputError, match=r"c\.pt was trained with model\.ert_nhead=32, not 4: set the same"):
        load_weights(tmp_path / "c.pt", small(), False, {"ert_nhead": 4, "norm_layer": None})


def test_what_older_checkpoints_tell_of_their_training(tmp_path):
    model = randomised()
    for optimizer, expected in ((SGD(model.parameters(), 0.1), False), (AdamW(model.parameters()), True)):
        save_tensors(tmp_path / "c.pt", checkpoint_content(model, optimizer, MultiStepLR(optimizer, [1])))
        assert load_weights(tmp_path / "c.pt", small(), False).matcher_trained is expected
    torch.save(
        {"state": model.state_dict(), "origin": {"model": {"a": torch.ones(2), "b": 1}, "crop_size": "96"}},
        tmp_path / "c.pt",
    )
    assert load_weights(tmp_path / "c.pt", small(), False, {"a": 1, "b": 1}) == TrainingInfo({"b": 1}, False)
    for optim in ([], {"param_groups": []}, {"param_groups": 3}, None):
        torch.save({"state": model.state_dict(), "optim": optim, "origin": 5}, tmp_path / "c.pt")
        assert load_weights(tmp_path / "c.pt", small(), False) == UNKNOWN
