"""All that a training run is, and what its optimiser gets of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.io.checkpoint import UNKNOWN, TrainingInfo
from utils.retrieval.measures import MAP_AT_R
from utils.runtime.device import device_of

RECALL, PRECISION = "val.recall@", f"val.{MAP_AT_R}"


@dataclass
class TrainingState:
    """All that a training run is, besides its data and its settings."""

    model: nn.Module
    criterion: nn.Module  # the loss; it may have weights of its own, which are trained and kept as the model's are
    optimizer: Optimizer  # of `parameter_groups` of both
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler  # of float16's losses; idle in other formats
    epoch: int = 0  # epochs trained: the number of the one that comes next
    iteration: int = 0  # iterations trained of that one
    is_validated: bool = False  # as it is after so many epochs
    best: float | None = None  # the highest `deciding` measure of a validation so far
    scalars: list[tuple[str, float, float]] = field(default_factory=list)  # logged so far: name, value, step
    origin: TrainingInfo = UNKNOWN  # what its checkpoints say of themselves

    @classmethod
    def new(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler,
        dtype: torch.dtype,
        epoch: int = 0,
        origin: TrainingInfo = UNKNOWN,
        criterion: Callable[..., Tensor] | None = None,
    ) -> "TrainingState":
        """The state before `epoch`, of a run that computes in `dtype`. A plain function has no weights to keep."""
        scaler = torch.amp.GradScaler(device_of(model).type, enabled=dtype == torch.float16)
        kept = criterion if isinstance(criterion, nn.Module) else nn.Module()
        return cls(model, kept, optimizer, scheduler, scaler, epoch, origin=origin)

    @property
    def modules(self) -> nn.ModuleDict:
        """All that has weights."""
        return nn.ModuleDict({"model": self.model, "criterion": self.criterion})

    def validations(self) -> dict[float, dict[int | str, float]]:
        """The measures of each validation, recalls by K and mAP@R by its name, by the epochs trained before it."""
        validations: dict[float, dict[int | str, float]] = {}
        for name, value, epoch in self.scalars:
            if name.startswith(RECALL) and (k := name.removeprefix(RECALL)).isdecimal():
                validations.setdefault(epoch, {})[int(k)] = value
            elif name == PRECISION:
                validations.setdefault(epoch, {})[MAP_AT_R] = value
        return validations


def scalar_name(measure: int | str) -> str:
    """The name that a measure of a validation, a K or mAP@R, is logged by."""
    return PRECISION if measure == MAP_AT_R else f"{RECALL}{measure}"


def deciding(measures: Mapping[int | str, float]) -> float:
    """What chooses the best epoch: mAP@R where a validation has it, else R@1."""
    return measures.get(MAP_AT_R, measures[1])


def parameter_groups(
    modules: Sequence[nn.Module],
    no_bias_decay: bool,
    lr: float,
    own_rates: Mapping[nn.Module, float] = MappingProxyType({}),
) -> list[dict]:
    """All parameters of model and criterion, frozen ones too; with `no_bias_decay` the one-dimensional ones apart,
    without weight decay.

    Those of a module with an `lr_factor` are apart, too: they learn at so many times `lr`, without weight decay. And
    those of modules in `own_rates`, which learn at these rates, with weight decay as all others.
    """
    all_modules = nn.ModuleList(modules)
    rates: dict[nn.Parameter, float] = {
        parameter: lr * module.lr_factor  # type: ignore[operator,misc]
        for module in all_modules.modules()
        if hasattr(module, "lr_factor")
        for parameter in module.parameters()
    }
    own = {parameter: rate for module, rate in own_rates.items() for parameter in module.parameters()}
    apart = rates.keys() | own.keys()
    groups = _by_decay([parameter for parameter in all_modules.parameters() if parameter not in apart], no_bias_decay)
    for module, rate in own_rates.items():
        groups += [{**group, "lr": rate} for group in _by_decay(list(module.parameters()), no_bias_decay)]
    for rate in sorted(set(rates.values())):
        of_rate = [parameter for parameter in rates if rates[parameter] == rate]
        groups.append({"params": of_rate, "lr": rate, "weight_decay": 0.0})
    return groups


def _by_decay(parameters: list[nn.Parameter], no_bias_decay: bool) -> list[dict]:
    if not no_bias_decay:
        return [{"params": parameters}]
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() != 1]},
        {"params": [parameter for parameter in parameters if parameter.dim() == 1], "weight_decay": 0.0},
    ]
