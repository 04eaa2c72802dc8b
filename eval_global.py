"""Global retrieval: embed the images, search each query's nearest neighbours, report R@K (paper, section 4)."""

import torch
from sacred import Experiment

from models.ingredient import load_model, model_ingredient
from sop.ingredient import data_ingredient, get_loaders
from utils.caches import save_neighbours
from utils.errors import InputError
from utils.experiment import report_recalls, reports_errors, select_device, set_up
from utils.training import evaluate_global

ex = set_up(Experiment("Global (eval)", ingredients=[data_ingredient, model_ingredient]))


@ex.config
def config():
    temp_dir = "outputs/temp"  # where nn_inds.pkl and nn_dists.pkl are written
    resume = None  # checkpoint; None: the initial model
    query_set = "test"  # or 'train': the training images searched against themselves
    cpu = False
    cudnn_flag = "benchmark"  # or 'deterministic'
    seed = 0


@ex.automain
@reports_errors
def main(_run, temp_dir, resume, query_set, cpu, cudnn_flag, seed):
    if query_set not in ("test", "train"):
        raise InputError(f"query_set={query_set!r} is unknown: choose from 'test', 'train'")
    device = select_device(cpu, cudnn_flag)
    torch.manual_seed(seed)
    loaders, recall_ks = get_loaders(training=False)
    query, gallery = (loaders.query, loaders.gallery) if query_set == "test" else (loaders.query_train, None)
    torch.manual_seed(seed)
    if resume is None:
        print("no checkpoint was given (resume=FILE): evaluating the initial model")
    model = load_model(loaders.num_classes, resume, device)
    recalls, distances, positions = evaluate_global(model, query, gallery, recall_ks)
    save_neighbours(temp_dir, distances, positions)
    report_recalls(_run, recalls, positions.shape[1])
    return recalls[recall_ks[0]]
