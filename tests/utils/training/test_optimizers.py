"""The training commands' fused optimisers against torch's plain ones."""

import copy

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from tests.reference import pixels, published_model
from utils import BinaryCrossEntropyWithLogits, Contrastive
from utils.io.checkpoint import checkpoint_content, save_tensors
from utils.training.loop import train_global, train_rerank
from utils.training.state import parameter_groups


def make(task, model, fused):
    lr = 0.01 if task == "global" else 1e-3
    groups = parameter_groups([model], True, lr)
    if task == "global":
        return SGD(groups, lr, 0.9, weight_decay=4e-4, nesterov=True, fused=fused)
    return AdamW(groups, lr, weight_decay=4e-4, fused=fused)


def shadowed(model, optimizer, task):
    """A copy of the network that a plain optimiser moves by the same gradients, at each step of `optimizer`."""
    shadow = copy.deepcopy(model)
    plain = make(task, shadow, False)

    def follow(*_):
        if getattr(optimizer, "found_inf", None):
            return  # a loss scale too large for float16: no step
        scale = getattr(optimizer, "grad_scale", None) or torch.tensor(1.0)
        for parameter, mine in zip(model.parameters(), shadow.parameters(), strict=True):
            mine.grad = None if parameter.grad is None else parameter.grad / scale
        for group, mine in zip(optimizer.param_groups, plain.param_groups, strict=True):
            mine["lr"] = group["lr"]
        plain.step()

    optimizer.register_step_pre_hook(follow)
    return shadow


@pytest.mark.parametrize(
    ("task", "frozen", "dtype"),
    [
        ("global", False, torch.float32),
        ("global", False, torch.float16),
        ("rerank", False, torch.float32),
        ("rerank", True, torch.float32),
        ("rerank", True, torch.float16),
    ],
)
def test_fused_steps_equal_plain_ones(task, frozen, dtype):
    model = published_model(6, arch="resnet18", freeze_backbone=frozen).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model)
    optimizer = make(task, model, True)
    shadow, scheduler = shadowed(model, optimizer, task), MultiStepLR(optimizer, [1], 0.1)
    train, loss = (train_global, Contrastive()) if task == "global" else (train_rerank, BinaryCrossEntropyWithLogits())
    side = 64 if dtype == torch.float32 else 32  # float16 is slow on a CPU
    for epoch in range(2):
        loader = [(pixels(f"{epoch}.{i}", 6, 3, side, side), torch.arange(6) // 2, torch.arange(6)) for i in range(2)]
        train(model, loader, loss, optimizer, scheduler, epoch, dtype=dtype)
    moved = set()
    for (name, found), plain, old in zip(
        model.named_parameters(), shadow.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6, msg=name)
        if not torch.equal(found, old):
            moved.add(name.split(".")[0])
    heads = {"remap"} if task == "global" else {"remap_local", "matcher"}
    assert moved == heads | (set() if frozen else {"backbone"})


@pytest.mark.parametrize("task", ["global", "rerank"])
def test_a_saved_state_goes_into_a_plain_optimizer(task, tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = make(task, model, True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_tensors(tmp_path / "c.pt", checkpoint_content(model, optimizer, MultiStepLR(optimizer, [1])))
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["optim"]
    for group in saved["param_groups"]:
        group["fused"] = False
    other = copy.deepcopy(model)
    plain = make(task, other, False)
    plain.load_state_dict(saved)
    for network, stepped in ((model, optimizer), (other, plain)):
        stepped.zero_grad()
        network(torch.arange(3.0)[None]).sum().backward()
        stepped.step()
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
