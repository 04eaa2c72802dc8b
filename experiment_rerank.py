"""Train the matcher on triplets, with a frozen or a finetuned backbone (paper, section 3.3).

`objective` says which scores of a pair of photos are trained, and which ranking chooses the best epoch:

* 'published': the matcher's logit, as in the paper; by R@1 of the logit.
* 'joint': the logit and the Chamfer similarity of the local maps, for photos of one's own, to be ranked by all three
  scores; by mAP@R of `logit + cosine + chamfer`.
* 'chamfer': that similarity alone, where no transformer is to be trained; by mAP@R of `chamfer + cosine`.
"""

import startup

from functools import partial

import torch
from sacred import Experiment
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from models.costs import print_costs
from models.ingredient import load_model, model_ingredient, resizing
from models.settings import MODEL_RULES
from sop.images.transforms import Resizing
from sop.ingredient import DATASET_RULES, MAY_CHANGE_ON_RESUME, data_ingredient, get_loaders, input_files
from sop.views import EmbeddedViews
from utils.errors import InputError
from utils.evaluation import evaluate_fused, evaluate_rerank
from utils.experiment import command, training_run
from utils.experiment.command import note_files
from utils.experiment.fusion import fit_best_checkpoint
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.experiment.training_run import TRAINING_RULES
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.embedding import embed_views
from utils.runtime.ranks import rank
from utils.settings import TEXT, one_of, whole_number
from utils.training.losses import OBJECTIVES, rerank_criterion
from utils.training.state import TrainingState, parameter_groups
from utils.training.steps import rerank_step

startup.done()

ex = set_up(Experiment("Rerank (train)", ingredients=[data_ingredient, model_ingredient]))

VALIDATION_CANDIDATES = 15  # of each query, to save time


@ex.config
def config():
    epochs = 100  # a validation follows each of them
    lr = 0.0001  # AdamW's learning rate
    weight_decay = 4e-4  # of the optimiser
    no_bias_decay = False  # no weight decay for one-dimensional parameters
    scheduler_tau = [60, 80]  # epochs after which the learning rate is multiplied by scheduler_gamma
    scheduler_gamma = 0.1  # see scheduler_tau
    resume = None  # checkpoint to take the weights from
    cache_nn_inds = "rrt_sop_caches/rrt_r50_sop_nn_inds_test.pkl"  # neighbour file of the test images, for validation
    frozen_views = None  # augmented crops of each image, embedded once by a frozen backbone; None: new crops
    objective = "published"  # 'joint': the Chamfer similarity, too; 'chamfer': that alone, without the matcher
    num_negatives = 1  # of each anchor, with objective='chamfer'; of several, the loss is a softmax
    micro_batch = None  # images that the network holds at a time; None: the whole batch
    temp_dir = "logs/temp"  # where the checkpoint and last.pt are written
    continue_run = None  # True: continue from temp_dir's last.pt; False: start anew; None: error if a run is unfinished
    save_minutes = 10  # between two saves of last.pt within an epoch
    cpu = False  # True: compute on the CPU even where there is a GPU
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    timeout_minutes = 10  # how long to wait for another rank (torchrun), or for a batch of the loader's workers
    seed = 459858808


RULES = {
    "": TRAINING_RULES
    | {
        "cache_nn_inds": TEXT,
        "frozen_views": whole_number(1).or_none(),
        "objective": one_of(*OBJECTIVES),
        "num_negatives": whole_number(1),
    },
    "dataset": DATASET_RULES,
    "model": MODEL_RULES,
}
begin_run = ex.capture(command.begin_run)
open_training, run_training = map(ex.capture, (training_run.open_training, training_run.run_training))


@ex.capture
def new_state(
    model, criterion, dtype, origin, dataset, lr, weight_decay, no_bias_decay, scheduler_tau, scheduler_gamma
) -> TrainingState:
    groups = parameter_groups((model, criterion), no_bias_decay, lr, model.learning_rates)
    optimizer = AdamW(groups, lr, weight_decay=weight_decay, fused=True)
    scheduler = MultiStepLR(optimizer, scheduler_tau, scheduler_gamma)
    origin = origin._replace(crop_size=dataset["crop_size"])
    return TrainingState.new(model, optimizer, scheduler, dtype, origin=origin, criterion=criterion)


def check_combination(config) -> None:
    """Raise InputError for settings that contradict each other."""
    objective, sampler = config["objective"], config["dataset"]["sampler"]
    if config["frozen_views"] is not None and not config["model"]["freeze_backbone"]:
        raise InputError(
            f"frozen_views={config['frozen_views']} needs a frozen backbone: set model.freeze_backbone=True"
        )
    if sampler != "triplet":
        raise InputError(f"dataset.sampler={sampler!r}: reranking is trained on triplets, set dataset.sampler=triplet")
    if config["num_negatives"] > 1 and objective != "chamfer":
        raise InputError(
            f"num_negatives={config['num_negatives']} goes with objective='chamfer' alone: set it, or num_negatives=1"
        )


@ex.automain
@reports_errors
def main(
    _run, _config, resume, cache_nn_inds, frozen_views, objective, num_negatives, micro_batch, timeout_minutes, seed
):
    """Train the matcher on triplets."""
    with begin_run(RULES) as (device, dtype):
        resized = Resizing(**resizing(_config["dataset"]["crop_size"]))
        check_combination(_config)
        torch.manual_seed(seed)
        sampling = {"num_negatives": num_negatives, "resizing": resized}
        loaders, recall_ks = get_loaders(device=device, timeout_minutes=timeout_minutes, **sampling)
        neighbours = loaders.neighbours(cache_nn_inds)
        validated = neighbours[:, :VALIDATION_CANDIDATES].clone()
        torch.manual_seed(seed)
        note_files(_run, cache_nn_inds, *input_files(training=True))
        training = open_training(loaders.photo_sizes, MAY_CHANGE_ON_RESUME)
        weights = training.initial_weights(resume)
        model, origin = load_model(loaders.num_classes, device=device, training=True, **weights)
        note_files(_run, weights["resume"])
        criterion = rerank_criterion(objective, num_negatives).to(device)
        with_matcher = objective != "chamfer"
        ranks_by = "matcher" if with_matcher else "chamfer"
        print_costs(model, _config["dataset"]["crop_size"], loaders.num_test_photos, dtype, ranks_by)
        if not with_matcher:
            model.matcher.requires_grad_(False)
        if objective != "published" and model.freeze_backbone and not list(model.remap_local.parameters()):
            raise InputError(
                f"objective={objective!r} trains the local maps, and with model.freeze_backbone=True they are the "
                "backbone's: set another model.num_local_features, or model.freeze_backbone=False"
            )
        state = new_state(
            model, criterion, dtype, origin._replace(matcher_trained=with_matcher or bool(origin.matcher_trained))
        )
        training.begin(state)
        step = rerank_step(model, criterion, dtype, micro_batch, frozen_views is not None, num_negatives)
        train_loader = loaders.train
        if frozen_views is not None:
            embed = partial(embed_views, model, dtype=dtype)
            train_loader = EmbeddedViews(train_loader, frozen_views, embed, device)
        torch.manual_seed(seed + rank())  # another dropout on each rank
        scored = neighbours[:, :MAX_CANDIDATES].clone()
        evaluate = evaluate_rerank if objective == "published" else partial(evaluate_fused, with_matcher=with_matcher)
        return run_training(
            training=training,
            state=state,
            step=step,
            loader=train_loader,
            validate=lambda: evaluate(model, validated, loaders.query, loaders.gallery, recall_ks, dtype),
            fit_fusion=lambda: fit_best_checkpoint(
                training.files.checkpoint, model, scored, loaders, dtype, with_matcher, _config["dataset"]["val_file"]
            ),
        )
