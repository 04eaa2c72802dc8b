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
        others = other.state_dict()
        for name, tensor in model.state_dict().items():
            assert name.startswith("classifier.") or torch.equal(tensor, others[name])


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
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(randomised(**changes).state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputError, match=rf"checkpoint .*c\.pt does not fit this model: .*{message}"):
        load_weights(tmp_path / "c.pt", model, training=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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


def test_neighbours_are_no_checkpoint(tmp_path):
    """And torch's advice, to allow what they hold, is not repeated."""
    pickle_save(tmp_path / "nn_inds.pkl", np.zeros((2, 3), int))
    with pytest.raises(InputError, match=r"no plain checkpoint of tensors \(.*_reconstruct\)$") as raised:
        load_weights(tmp_path / "nn_inds.pkl", small(), training=False)
    assert "safe_globals" not in "".join(format_exception(raised.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "could not be read|was refused"),
        (b"not a checkpoint", "could not be read|was refused"),
        (torch.ones(3), "is not a checkpoint: expected a dict with 'state'"),
        ({}, "is not a checkpoint: expected a dict with 'state'"),
        ({"state": 3}, "is not a checkpoint: expected a dict with 'state'"),
        ({"epoch": 3, "loss": 0.1}, "is not a checkpoint: expected a dict with 'state'"),
    ],
)
def test_not_a_checkpoint(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "c.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "c.pt")
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "c.pt", small(), training=False)


def test_a_truncated_checkpoint(tmp_path):
    torch.save(small().state_dict(), tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"c\.pt could not be read"):
        load_weights(tmp_path / "c.pt", small(), training=False)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint .*none\.pt does not exist: check resume="):
        load_weights(tmp_path / "none.pt", small(), training=False)


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
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "c.pt", model, training=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision_weights_are_taken(tmp_path):
    state = randomised().state_dict()
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "c.pt")
    model = small()
    load_weights(tmp_path / "c.pt", model, training=False)
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"].half().float())


def test_a_flipped_bit_is_noticed(tmp_path):
    torch.save(randomised().state_dict(), tmp_path / "c.pt")
    content = bytearray((tmp_path / "c.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.pt could not be read: it is damaged in \S+/data/\d+"):
        load_weights(tmp_path / "c.pt", small(), training=False)


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    torch.save(randomised().state_dict(), tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"packed\.pt could not be read: its content is packed"):
        load_weights(tmp_path / "packed.pt", small(), training=False)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt could not be read: .*it is no file"):
        load_weights(tmp_path / "c.pt", small(), training=False)


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
