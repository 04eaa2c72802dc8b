"""Reranking: rescore each query's cached neighbours with the matcher, report R@K (paper, section 4)."""

import torch
from sacred import Experiment

from models.ingredient import load_model, model_ingredient
from sop.ingredient import data_ingredient, get_loaders
from utils.caches import save_neighbours
from utils.errors import InputError
from utils.experiment import report_recalls, reports_errors, select_device, set_up
from utils.training import evaluate_rerank

ex = set_up(Experiment("Rerank (eval)", ingredients=[data_ingredient, model_ingredient]))


@ex.config
def config():
    temp_dir = "logs/temp"  # where nn_inds.pkl and nn_dists.pkl, here the logits, are written
    resume = None  # checkpoint; needed
    cache_nn_inds = "caches/sop/nn_inds_test.pkl"  # neighbour file of the test images
    cpu = False
    cudnn_flag = "benchmark"  # or 'deterministic'
    seed = 0


@ex.automain
@reports_errors
def main(_run, temp_dir, resume, cache_nn_inds, cpu, cudnn_flag, seed):
    if resume is None:
        raise InputError("no checkpoint was given: reranking needs a trained model, set resume=FILE")
    device = select_device(cpu, cudnn_flag)
    torch.manual_seed(seed)
    loaders, recall_ks = get_loaders(training=False)
    neighbours = loaders.neighbours(cache_nn_inds)
    torch.manual_seed(seed)
    model = load_model(loaders.num_classes, resume, device)
    recalls, logits, positions = evaluate_rerank(model, neighbours, loaders.query, loaders.gallery, recall_ks)
    save_neighbours(temp_dir, logits, positions)
    report_recalls(_run, recalls, positions.shape[1])
    return recalls[recall_ks[0]]
