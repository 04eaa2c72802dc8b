"""Reranking: rescore each query's cached neighbours with the matcher, report R@K (paper, section 4)."""

import torch
from sacred import Experiment

from models.ingredient import load_model, model_ingredient
from sop.ingredient import data_ingredient, get_loaders, input_files
from utils.errors import InputError
from utils.evaluation import evaluate_rerank, save_evaluation
from utils.experiment import reports_errors, set_up
from utils.metrics import MAX_CANDIDATES
from utils.run import begin_run, note_files, report_recalls

ex = set_up(Experiment("Rerank (eval)", ingredients=[data_ingredient, model_ingredient]))


@ex.config
def config():
    temp_dir = "logs/temp"  # where nn_inds.pkl, nn_dists.pkl (the logits) and per_query.csv are written
    resume = None  # checkpoint; needed
    cache_nn_inds = "caches/sop/nn_inds_test.pkl"  # neighbour file of the test images
    features = None  # folder to keep descriptors in: evaluated again, network and photos are not embedded again
    cpu = False
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    seed = 0


begin = ex.capture(begin_run)


@ex.automain
@reports_errors
def main(_run, temp_dir, resume, cache_nn_inds, features, seed):
    if resume is None:
        raise InputError("no checkpoint was given: reranking needs a trained model, set resume=FILE")
    device, dtype = begin()
    torch.manual_seed(seed)
    loaders, recall_ks = get_loaders(training=False, device=device)
    neighbours = loaders.neighbours(cache_nn_inds)[:, :MAX_CANDIDATES].clone()
    torch.manual_seed(seed)
    model = load_model(loaders.num_classes, resume, device)
    note_files(_run, resume, cache_nn_inds, *input_files())
    recalls, logits, positions = evaluate_rerank(
        model, neighbours, loaders.query, loaders.gallery, recall_ks, dtype, features
    )
    save_evaluation(temp_dir, loaders.query, loaders.gallery, logits, positions, recall_ks, neighbours.numpy())
    report_recalls(_run, recalls, positions.shape[1])
    return recalls[recall_ks[0]]
