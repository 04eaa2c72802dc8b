"""`model.backbone_lr` and `model.grad_checkpointing`."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from tests.models.test_timm import network_of
from tests.reference import pixels
from utils.errors import InputError
from utils.training.losses import Contrastive
from utils.training.state import parameter_groups
from utils.training.steps import global_step


@pytest.mark.parametrize("no_bias_decay", [False, True])
@pytest.mark.parametrize("arch", ["test_vit", "resnet18"])
def test_the_backbone_learns_at_its_own_rate(arch, no_bias_decay):
    network = network_of(arch, backbone_lr=0.02, num_global_features=8, num_local_features=8).train()
    plain = network_of(arch, num_global_features=8, num_local_features=8)
    assert plain.learning_rates == {}
    groups = parameter_groups([network], no_bias_decay, 0.1, network.learning_rates)
    optimizer = SGD(groups, 0.1, weight_decay=0.5)
    scheduler = MultiStepLR(optimizer, [1], 0.1)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    decays = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert rates[parameter] == (0.02 if name.startswith("backbone.") else 0.1), name
        assert decays[parameter] == (0 if no_bias_decay and parameter.dim() == 1 else 0.5), name
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    global_step(network, Contrastive(0.5))(pixels("rates", 4, 3, 64, 64), torch.tensor([0, 0, 1, 1]), lambda loss: loss)
    optimizer.step()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            rate, decay = rates[parameter], decays[parameter]
            expected = before[name] - rate * (parameter.grad + decay * before[name])
            torch.testing.assert_close(parameter.detach(), expected)
    scheduler.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.002, 0.01])


@pytest.mark.parametrize("arch", ["test_vit", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("changes", [{}, {"pool": "head"}])
def test_checkpointed_gradients_are_the_same(arch, changes):
    images, labels = pixels("checkpointing", 4, 3, 64, 64), torch.tensor([0, 0, 1, 1])
    gradients, losses, blocks = [], [], []
    for checkpointing in (False, True):
        network = network_of(arch, grad_checkpointing=checkpointing, **changes).train()
        forwards: list[int] = []
        block = network.backbone.network.blocks[0]
        (block[0] if arch != "test_vit" else block).register_forward_pre_hook(lambda *_, of=forwards: of.append(1))
        loss, _ = global_step(network, Contrastive(0.5))(images, labels, lambda loss: loss)
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        blocks.append(len(forwards))
        with torch.no_grad():
            network.eval().embedder()(images)
    assert blocks == [1, 2] and losses[0] == pytest.approx(losses[1]) and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("resnet18", {}, "model.grad_checkpointing=True: this backbone keeps all its activations, leave it out"),
        ("hrnet_w18_small", {}, "model.grad_checkpointing=True: hrnet_w18_small does not know it, leave it out"),
        ("tf_efficientnet_lite0", {"set_bn_eval": False}, "would count each batch twice: set model.set_bn_eval=True"),
    ],
)
def test_where_gradients_cannot_be_checkpointed(arch, changes, message):
    with pytest.raises(InputError, match=message):
        network_of(arch, grad_checkpointing=True, **changes)
