"""Global retrieval: embed the images, search the nearest neighbours of each query, report R@K (paper, section 4)."""

import startup

from pathlib import Path

import torch
from sacred import Experiment

from models.costs import print_costs
from models.ingredient import load_model, model_ingredient, resizing
from models.settings import MODEL_RULES
from sop.images.transforms import Resizing
from sop.ingredient import DATASET_RULES, data_ingredient, get_loaders, input_files
from utils.evaluation import evaluate_global
from utils.experiment import command
from utils.experiment.command import note_files, report_best_ranking, report_recalls
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.io.disk import check_disk_space
from utils.retrieval.knn import make_index
from utils.retrieval.measures import measures_of
from utils.retrieval.ranking import Ranking
from utils.retrieval.rankings import print_notes
from utils.retrieval.results import Labels, save_evaluation
from utils.settings import TEXT, one_of

startup.done()

ex = set_up(Experiment("Global (eval)", ingredients=[data_ingredient, model_ingredient]))

BYTES_A_NEIGHBOUR = 12  # position and distance


@ex.config
def config():
    temp_dir = "outputs/temp"  # where nn_inds.pkl, nn_dists.pkl and per_query.csv are written
    resume = None  # checkpoint; None: the initial model, a pretrained backbone
    knn_index = "Flat"  # exact; or another index for galleries of millions: 'IVF1024,Flat;nprobe=16', 'HNSW32', ...
    query_set = "test"  # or 'train': the training images searched against themselves
    features = None  # folder that caches descriptors and feature maps, so that photos are embedded once
    cpu = False  # True: compute on the CPU even where there is a GPU
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    timeout_minutes = 10  # how long to wait for another rank (torchrun), or for a batch of the loader's workers
    seed = 0


RULES = {
    "": {
        "resume": TEXT.or_none(),
        "knn_index": TEXT,
        "query_set": one_of("test", "train"),
        "features": TEXT.or_none(),
    },
    "dataset": DATASET_RULES,
    "model": MODEL_RULES,
}
begin_run = ex.capture(command.begin_run)


@ex.automain
@reports_errors
def main(_run, _config, temp_dir, resume, knn_index, query_set, features, timeout_minutes, dataset, seed):
    """Search the neighbours of each query, and report R@K."""
    with begin_run(RULES) as (device, dtype):
        torch.manual_seed(seed)
        resized = {"resizing": Resizing(**resizing(dataset["crop_size"]))}
        loaders, recall_ks = get_loaders(training=False, device=device, timeout_minutes=timeout_minutes, **resized)
        query, gallery = (loaders.query, loaders.gallery) if query_set == "test" else (loaders.query_train, None)
        neighbours = len(query.dataset) * min(max(recall_ks), len((gallery or query).dataset))
        check_disk_space({Path(temp_dir): neighbours * BYTES_A_NEIGHBOUR}, "the result")
        torch.manual_seed(seed)
        if resume is None:
            print("no checkpoint was given (resume=FILE): evaluating the initial model")
        model, _ = load_model(loaders.num_classes, resume, device, crop_size=dataset["crop_size"])
        photos = sum(len(loader.dataset) for loader in (query, gallery) if loader is not None)
        print_costs(model, dataset["crop_size"], photos, dtype)
        make_index(knn_index, model.settings.num_global_features)  # an invalid one raises before embedding
        note_files(_run, resume, *input_files())
        recalls, distances, positions = evaluate_global(model, query, gallery, recall_ks, dtype, knn_index, features)
        labels = Labels.of(query, gallery)
        measures = measures_of(positions, labels.queries, labels.gallery, recall_ks, labels.is_self_search)
        _run.info["measures"] = {"global": measures.values}
        try:
            save_evaluation(temp_dir, query.dataset, Ranking(distances, positions), {"global": measures})
        finally:  # the result is printed even if it cannot be written
            others = {name: value for name, value in measures.values.items() if not name.startswith("R@")}
            print(", ".join(f"{name} {value:.2f}" for name, value in others.items()))
            print_notes(measures, positions.shape[1])
            report_recalls(_run, recalls, positions.shape[1])
            report_best_ranking({"global": measures}, recall_ks[0])
        return recalls[recall_ks[0]]
