"""The network from plain settings: what these may be, and which of them its answers depend on."""

from models.matcher import Matcher
from models.resnet import BLOCKS, NORM_LAYERS, RerankingResNet
from utils.errors import InputError
from utils.settings import FLAG, Rules, number, one_of, whole_number

MODEL_RULES: Rules = {
    "arch": one_of(*BLOCKS)._replace(accepts=lambda value: isinstance(value, str) and value.lower() in BLOCKS),
    "pretrained": FLAG,
    "dropout": number(0, 1),
    "norm_layer": one_of(*NORM_LAYERS),
    "remap": FLAG,
    "detach": FLAG,
    "normalize": FLAG,
    "set_bn_eval": FLAG,
    "normalize_weight": FLAG,
    "freeze_backbone": FLAG,
    "num_global_features": whole_number(1, 1_000_000),
    "num_local_features": whole_number(4, 1_000_000, multiple=4),
    "ert_dim_feedforward": whole_number(1, 1_000_000),
    "ert_nhead": whole_number(1, 1_000_000),
    "ert_num_encoder_layers": whole_number(1, 1000),
    "ert_dropout": number(0, 1),
    "ert_activation": one_of("relu", "gelu"),
    "ert_normalize_before": FLAG,
}

ANSWER_SETTINGS = (  # those that evaluation depends on
    "arch",
    "norm_layer",
    "remap",
    "num_global_features",
    "num_local_features",
    "ert_dim_feedforward",
    "ert_nhead",
    "ert_num_encoder_layers",
    "ert_activation",
    "ert_normalize_before",
)


def make_network(
    num_classes: int,
    num_local_features: int = 128,
    ert_dim_feedforward: int = 1024,
    ert_nhead: int = 4,
    ert_num_encoder_layers: int = 6,
    ert_dropout: float = 0.0,
    ert_activation: str = "relu",
    ert_normalize_before: bool = False,
    **trunk,
) -> RerankingResNet:
    """The network for `num_classes` training classes; `trunk` are the settings that `RerankingResNet` takes.

    Raises InputError for an unknown `arch` or `norm_layer`, for heads that do not divide the matcher's width, and when
    pretrained weights cannot be fetched.
    """
    if num_local_features % ert_nhead:
        raise InputError(
            f"model.num_local_features={num_local_features} is no multiple of model.ert_nhead={ert_nhead}: each head "
            "takes an equal share"
        )
    matcher = Matcher(
        d_model=num_local_features,
        nhead=ert_nhead,
        num_encoder_layers=ert_num_encoder_layers,
        dim_feedforward=ert_dim_feedforward,
        dropout=ert_dropout,
        activation=ert_activation,
        normalize_before=ert_normalize_before,
    )
    return RerankingResNet(num_classes, matcher, num_local_features=num_local_features, **trunk)
