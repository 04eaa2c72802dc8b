"""torchvision's ResNets: their blocks, and their weights of ImageNet."""

import torch
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from utils.errors import InputError

BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_weights(arch: str) -> dict[str, Tensor]:
    """The trunk's tensors of torchvision's IMAGENET1K_V1 weights, from torch's hub cache or the network."""
    try:
        state = get_model_weights(arch)["IMAGENET1K_V1"].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise InputError(
            f"model.pretrained=True: the ImageNet weights of {arch} could not be fetched ({error}). Put the file into "
            f"{torch.hub.get_dir()}/checkpoints by hand, start from a checkpoint with resume=FILE, or train from "
            "scratch with model.pretrained=False model.set_bn_eval=False"
        ) from error
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
