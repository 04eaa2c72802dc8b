from utils.caches import pickle_load, pickle_save
from utils.checkpoint import num_of_trainable_params, state_dict_to_cpu
from utils.losses import BinaryCrossEntropyWithLogits, Contrastive

__all__ = [
    "BinaryCrossEntropyWithLogits",
    "Contrastive",
    "num_of_trainable_params",
    "pickle_load",
    "pickle_save",
    "state_dict_to_cpu",
]
