from contextlib import nullcontext

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR
from torchvision.ops import StochasticDepth

from tests.conftest import CUDA
from tests.models.test_resnet import new
from tests.reference import assert_answer, normal, pixels, published_model
from utils import BinaryCrossEntropyWithLogits, Contrastive
from utils.errors import DeviceError, DivergedError, InputError, ReportedError
from utils.runtime.device import device_errors_as_input_errors
from utils.training.loop import fit, train_epoch, train_global, train_rerank
from utils.training.resume import TrainingFiles, random_state, set_random_state
from utils.training.state import TrainingState, parameter_groups
from utils.training.steps import backward_with_gradient_cache, global_step, is_stochastic


class Log:
    def __init__(self):
        self.rows = []

    def log_scalar(self, name, value, step):
        self.rows.append((name, value, step))

    def values(self, name):
        return [value for key, value, _ in self.rows if key == name]


def batches(tag, count, n, labels):
    return [(pixels(f"{tag}.{i}", n, 3, 64, 64), labels, torch.arange(n)) for i in range(count)]


@torch.no_grad()
def assert_probe(model, tag, tolerance):
    model.eval()
    assert_answer(model(pixels("probe", 2, 3, 64, 64))[1], f"{tag}.probe.g", tolerance)
    pair = normal("psrc", 4, 128, 2, 2), normal("ptgt", 4, 128, 2, 2)
    assert_answer(model.matcher(None, pair[0], None, pair[1]), f"{tag}.probe.match", tolerance)


def test_global_published():
    model, log = published_model(6), Log()
    optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=4e-4, nesterov=True)
    scheduler = MultiStepLR(optimizer, [1], 0.1)
    for epoch in range(2):
        loader = batches(f"global{epoch}", 3, 12, torch.arange(12) // 2)
        train_global(model, loader, Contrastive(temperature=0.05), optimizer, scheduler, epoch, log)
    assert_answer(log.values("train.loss"), "train_global.loss", 2e-4)
    assert_answer(log.values("train.acc"), "train_global.acc", 1e-6)
    assert_answer([step for name, _, step in log.rows if name == "train.loss"], "train_global.step", 1e-9)
    assert_probe(model, "train_global", 2e-3)


@pytest.mark.parametrize("frozen", [True, False])
def test_rerank_published(frozen):
    tag = "train_rerank_frozen" if frozen else "train_rerank_finetune"
    model, log = published_model(6, freeze_backbone=frozen), Log()
    optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=4e-4)
    scheduler = MultiStepLR(optimizer, [60, 80], 0.1)
    loader = batches(tag, 3, 9, torch.arange(9))
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_rerank(model, loader, BinaryCrossEntropyWithLogits(), optimizer, scheduler, 0, log)
    assert_answer(log.values("train.loss"), "train_rerank_frozen.loss" if frozen else f"{tag}.loss", 1e-3)
    assert_answer(log.values("train.acc"), f"{tag}.acc", 1e-6)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"remap_local", "matcher"} if frozen else {"remap_local", "matcher", "backbone"})
    assert_probe(model, tag, 1e-2)


def train_on(losses):
    """Epoch 4 of a model whose losses are given; iteration i shows the images i and i + 1."""
    model, log = torch.nn.Linear(1, 1), Log()
    model.forward = lambda images: (images[:, :2], model.weight.expand(len(images), 1), None)
    optimizer = SGD(model.parameters(), lr=0.0)
    labels = torch.zeros(2, dtype=torch.long)
    loader = [(torch.full((2, 3), loss), labels, torch.tensor([i, i + 1])) for i, loss in enumerate(losses)]
    loss = lambda logits, features, labels: features.sum() * 0 + logits.mean()  # noqa: E731
    train_global(model, loader, loss, optimizer, MultiStepLR(optimizer, [1]), 4, log)
    return log


@pytest.mark.parametrize("count", [3, 20, 45])
def test_every_iteration_is_logged_once_and_in_order(count):
    log = train_on([float(i) for i in range(count)])
    assert log.values("train.loss") == [float(i) for i in range(count)]
    assert [step for name, _, step in log.rows if name == "train.acc"] == [4 + i / count for i in range(count)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training(value):
    message = rf"the loss is {value} at epoch 5, iteration 23, of the training images \[22, 23\]: training stops"
    with pytest.raises(DivergedError, match=message):
        train_on([1.0] * 22 + [value] + [1.0] * 30)


def test_one_gradient_scaler_serves_a_whole_run(tmp_path):
    """The first of each epoch's two steps overflows, and halves the scale for all that come."""
    model = torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.0)
    state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), torch.float16)
    scales, recalls = [], iter([50.0, 60.0, 40.0, 70.0])

    def step(images, labels, scale):
        scales.append(state.scaler.get_scale())
        loss = model(images).sum()
        (scale(loss) * (torch.inf if len(scales) % 2 else 1)).backward()
        return loss, torch.tensor(1.0)

    batch = torch.ones(1, 1), torch.zeros(1), torch.arange(1)
    reports = []

    def report(*told):
        last = torch.load(tmp_path / "last.pt", weights_only=True)  # saved before it is told
        assert (last["epoch"], last["is_validated"], last["best"]) == (len(reports), True, state.best)
        reports.append(told)

    best = fit(
        state,
        step,
        [batch] * 2,
        lambda: ({1: next(recalls)}, None, torch.zeros(3, 5)),
        epochs=3,
        log=(log := Log()),
        report=report,
        files=TrainingFiles(tmp_path / "c.pt"),
        autotune=False,
    )
    assert scales == [2**16, 2**15, 2**15, 2**14, 2**14, 2**13]
    assert (best, state.best, state.epoch, state.iteration) == (70.0, 70.0, 3, 0)
    assert log.values("val.recall@1") == [50.0, 60.0, 40.0, 70.0]
    assert [(title, improved) for _, _, title, improved in reports] == [
        ("Validation before training ", True),
        ("Validation [000] ", True),
        ("Validation [001] ", False),
        ("Validation [002] ", True),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("tried to allocate 2 GiB"),
            r"CUDA is out of memory: lower dataset\.batch_size or set micro_batch.*2 GiB",
        ),
        (
            RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. ... out of shared memory."),
            r"\(/dev/shm\) is too small for the loader: lower dataset\.num_workers .* or dataset\.batch_size",
        ),
        (
            RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"),
            r"\(/dev/shm\) is too small",
        ),
        (
            RuntimeError("Too many open files. Communication with the workers is no longer possible."),
            r"as many files open as it may have, .*: lower dataset\.num_workers .*, or raise the limit \(ulimit -n\)$",
        ),
        (OSError(24, "Too many open files"), "as many files open as it may have"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            r"a worker of the loader was ended \(.* Killed\.\): where memory is short, lower dataset\.num_workers or",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
            r"the GPU has failed \(CUDA error: an illegal memory access was encountered\): .* continue_run=True$",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the GPU has failed"),
        # a GPU whose memory is full has not failed, whoever has asked for more
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), "CUDA is out of memory: lower "),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "is out of memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "CUDA is out of memory"),
    ],
)
def test_errors_of_devices(error, message):
    class Loader:
        def __len__(self):
            return 1

        def __iter__(self):
            raise error

    loader, model = Loader(), torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ReportedError, match=message):
        train_global(model, loader, None, optimizer, MultiStepLR(optimizer, [1]), 0)


@pytest.mark.parametrize("told", ["gloo: Connection closed by peer", "shapes differ"])
def test_an_iteration_that_fails_costs_itself_alone(tmp_path, told):
    model = torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), torch.float32)

    def step(images, labels, scale):
        if state.iteration == 2:
            torch.rand(1)
            raise RuntimeError(told)
        loss = model(images).sum()
        scale(loss).backward()
        return loss, torch.tensor(1.0)

    batch = torch.ones(1, 1), torch.zeros(1), torch.arange(1)
    drawn = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=told):
        train_epoch(state, step, [batch] * 3, Log(), TrainingFiles(tmp_path / "c.pt", {"epochs": 1}))
    last = torch.load(tmp_path / "last.pt")
    assert last["iteration"] == 2 and torch.equal(last["random_state"][0], drawn)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="size mismatch"), device_errors_as_input_errors("x"):
        raise RuntimeError("size mismatch")


def test_what_is_told_is_told_once():
    with pytest.raises(DeviceError) as told, device_errors_as_input_errors("x"), device_errors_as_input_errors("y"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert str(told.value).count("the GPU has failed") == 1


@pytest.mark.parametrize(("error", "saved"), [(DeviceError("the GPU has failed"), False), (InputError("other"), True)])
def test_nothing_is_asked_of_a_gpu_that_fails_while_validating(tmp_path, error, saved):
    def validate():
        raise error

    model = torch.nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), torch.float32)
    files = TrainingFiles(tmp_path / "c.pt", {"epochs": 1})
    with pytest.raises(type(error), match=str(error)):
        fit(state, None, [], validate, 1, Log(), None, files, autotune=False)
    assert (tmp_path / "last.pt").exists() == saved


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize(("told", "saved"), [("NCCL communicator was aborted", False), ("shapes differ", True)])
def test_nothing_is_asked_of_a_gpu_that_may_wait_for_a_lost_process(tmp_path, device, told, saved):
    def step(images, labels, scale):
        raise RuntimeError(told)

    model = torch.nn.Linear(1, 1, device=device)
    optimizer = SGD(model.parameters(), lr=0.1)
    state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), torch.float32)
    batch = torch.ones(1, 1), torch.zeros(1), torch.arange(1)
    with pytest.raises(RuntimeError, match=told):
        train_epoch(state, step, [batch], Log(), TrainingFiles(tmp_path / "c.pt", {"epochs": 1}))
    assert (tmp_path / "last.pt").exists() == saved


@pytest.mark.parametrize("device", [CUDA])
def test_an_iteration_that_fails_costs_no_random_number_of_a_gpu(tmp_path, device):
    torch.rand(1, device=device)
    states = random_state()
    drawn = torch.rand(3), torch.rand(3, device=device)
    set_random_state(states)
    assert all(map(torch.equal, drawn, (torch.rand(3), torch.rand(3, device=device))))


def gradients(train, loss, images, labels, micro_batch, device):
    model, log = published_model(6, arch="resnet18").to(device), Log()
    optimizer = SGD(model.parameters(), lr=0.0)
    loader = [(images, labels, torch.arange(len(images)))]
    train(model, loader, loss, optimizer, MultiStepLR(optimizer, [9]), 0, log, micro_batch=micro_batch)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found, log.rows


@pytest.mark.parametrize(
    ("train", "loss", "micro_batch"),
    [
        (train_global, Contrastive(), 4),
        (train_global, Contrastive(), 5),
        (train_rerank, BinaryCrossEntropyWithLogits(), 6),
    ],
)
def test_micro_batches_give_the_gradient_of_the_whole(train, loss, micro_batch, device):
    images, labels = pixels("micro", 15, 3, 64, 64), torch.arange(15) // 2
    (expected, rows), (found, micro_rows) = (
        gradients(train, loss, images, labels, n, device) for n in (None, micro_batch)
    )
    assert found.keys() == expected.keys()
    if device.type == "cpu":
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items()) <= 1e-5 * largest
    else:  # another algorithm for another batch size rounds otherwise, and some ReLUs turn
        norms = [
            torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            for gradients in (expected.values(), [found[name] - gradient for name, gradient in expected.items()])
        ]
        assert norms[1] <= 0.05 * norms[0]
    assert [row[1] for row in micro_rows] == pytest.approx([row[1] for row in rows], rel=1e-5)


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("reads", ["descriptors", "logits", "both"])
def test_two_passes_against_plain_autograd(reads, micro_batch, device):
    first, second = (torch.nn.Linear(3, size, dtype=torch.double, device=device) for size in (5, 4))
    images, labels = torch.randn(10, 3, dtype=torch.double, device=device), torch.arange(10, device=device) // 2

    def embed(images):
        return first(images).tanh(), second(images).tanh()

    def loss_of(logits, descriptors, labels):
        on_descriptors = Contrastive(0.5)(None, descriptors, labels)
        on_logits = torch.nn.functional.cross_entropy(logits, labels)
        return {"descriptors": on_descriptors, "logits": on_logits, "both": on_descriptors + on_logits}[reads]

    weights = [first.weight, second.weight]
    expected = loss_of(*embed(images), labels)
    gradients = torch.autograd.grad(expected, weights, allow_unused=True)
    loss, logits = backward_with_gradient_cache(embed, loss_of, images, labels, micro_batch, lambda loss: 8 * loss)
    torch.testing.assert_close(loss.detach(), expected.detach())
    torch.testing.assert_close(logits.detach(), first(images).tanh().detach())
    for weight, gradient in zip(weights, gradients, strict=True):
        assert (weight.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(weight.grad, 8 * gradient)


@pytest.mark.parametrize(
    "changes", [{"set_bn_eval": False}, {"norm_layer": "batch"}, {"dropout": 0.1}, {"ert_dropout": 0.1}]
)
def test_micro_batches_are_refused_where_images_mix(changes):
    model = new(arch="resnet18", **changes)
    optimizer = SGD(model.parameters(), lr=0.0)
    with pytest.raises(InputError, match=r"micro_batch=6 needs each image .* model\.set_bn_eval=True"):
        train_global(model, [], Contrastive(), optimizer, MultiStepLR(optimizer, [9]), 0, micro_batch=6)


class DropPath(torch.nn.Module):
    """As timm's."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


def test_layers_that_draw_random_numbers():
    stochastic = [torch.nn.Dropout2d(0.1), torch.nn.AlphaDropout(0.1), torch.nn.RReLU(), StochasticDepth(0.1, "row")]
    stochastic += [torch.nn.MultiheadAttention(4, 2, dropout=0.1), DropPath(0.1)]
    assert all(map(is_stochastic, stochastic))
    others = [torch.nn.Dropout(0.0), DropPath(0.0), torch.nn.MultiheadAttention(4, 2), torch.nn.Linear(2, 2)]
    assert not any(map(is_stochastic, others))
    for layer, is_refused in ((DropPath(0.1), True), (DropPath(0.0), False)):
        model = new(arch="resnet18")
        model.backbone.layer1.append(layer)
        with pytest.raises(InputError, match="micro_batch=4") if is_refused else nullcontext():
            global_step(model, Contrastive(), micro_batch=4)


def test_micro_batches_keep_triplets_together():
    with pytest.raises(InputError, match="micro_batch=8 is no multiple of 3"):
        train_rerank(None, [], None, None, None, 0, micro_batch=8)


def test_parameter_groups():
    model = new(arch="resnet18", freeze_backbone=True)
    assert [len(group["params"]) for group in parameter_groups([model], False, 0.1)] == [len(list(model.parameters()))]
    decayed, kept = parameter_groups([model], True, 0.1)
    assert {p.dim() for p in kept["params"]} == {1}
    assert 1 not in {p.dim() for p in decayed["params"]}
    assert kept["weight_decay"] == 0
    assert "weight_decay" not in decayed
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
