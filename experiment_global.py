"""Train the global descriptor with the contrastive loss (paper, section 3.1)."""

import startup

import torch
from sacred import Experiment
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from models.costs import print_costs
from models.ingredient import load_model, model_ingredient, resizing
from models.settings import MODEL_RULES
from sop.images.transforms import Resizing
from sop.ingredient import DATASET_RULES, MAY_CHANGE_ON_RESUME, data_ingredient, get_loaders, input_files
from utils.evaluation import evaluate_global
from utils.experiment import command, training_run
from utils.experiment.command import note_files
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.experiment.training_run import TRAINING_RULES
from utils.runtime.ranks import rank
from utils.settings import FLAG, number
from utils.training.losses import Contrastive
from utils.training.state import TrainingState, parameter_groups
from utils.training.steps import global_step

startup.done()

ex = set_up(Experiment("Global (train)", ingredients=[data_ingredient, model_ingredient]))


@ex.config
def config():
    epochs = 100  # a validation follows each of them
    lr = 0.001  # SGD's learning rate
    momentum = 0.9  # of SGD
    nesterov = True  # Nesterov's momentum; only with momentum
    weight_decay = 4e-4  # of the optimiser
    no_bias_decay = False  # no weight decay for one-dimensional parameters
    scheduler_tau = [60, 80]  # epochs after which the learning rate is multiplied by scheduler_gamma
    scheduler_gamma = 0.1  # see scheduler_tau
    temperature = 0.05  # of the contrastive loss, by which similarities are divided
    resume = None  # checkpoint to take the weights from
    micro_batch = None  # images that the network holds at a time; None: the whole batch
    temp_dir = "logs/temp"  # where the checkpoint and last.pt are written
    continue_run = None  # True: continue from temp_dir's last.pt; False: start anew; None: error if a run is unfinished
    save_minutes = 10  # between two saves of last.pt within an epoch
    cpu = False  # True: compute on the CPU even where there is a GPU
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    timeout_minutes = 10  # how long to wait for another rank (torchrun), or for a batch of the loader's workers
    seed = 364086339


RULES = {
    "": TRAINING_RULES | {"momentum": number(0, 1), "nesterov": FLAG, "temperature": number(1e-6)},
    "dataset": DATASET_RULES,
    "model": MODEL_RULES,
}
begin_run = ex.capture(command.begin_run)
open_training, run_training = map(ex.capture, (training_run.open_training, training_run.run_training))


@ex.capture
def new_state(
    model,
    criterion,
    dtype,
    origin,
    dataset,
    lr,
    momentum,
    nesterov,
    weight_decay,
    no_bias_decay,
    scheduler_tau,
    scheduler_gamma,
) -> TrainingState:
    groups = parameter_groups((model, criterion), no_bias_decay, lr, model.learning_rates)
    optimizer = SGD(groups, lr, momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0, fused=True)
    scheduler = MultiStepLR(optimizer, scheduler_tau, scheduler_gamma)
    origin = origin._replace(crop_size=dataset["crop_size"])
    return TrainingState.new(model, optimizer, scheduler, dtype, origin=origin, criterion=criterion)


@ex.automain
@reports_errors
def main(_run, temperature, micro_batch, resume, timeout_minutes, dataset, seed):
    """Train the global descriptor."""
    with begin_run(RULES) as (device, dtype):
        torch.manual_seed(seed)
        resized = {"resizing": Resizing(**resizing(dataset["crop_size"]))}
        loaders, recall_ks = get_loaders(device=device, timeout_minutes=timeout_minutes, **resized)
        torch.manual_seed(seed)
        note_files(_run, *input_files(training=True))
        training = open_training(loaders.photo_sizes, MAY_CHANGE_ON_RESUME)
        weights = training.initial_weights(resume)
        model, origin = load_model(loaders.num_classes, device=device, training=True, **weights)
        note_files(_run, weights["resume"])
        print_costs(model, dataset["crop_size"], loaders.num_test_photos, dtype)
        criterion = Contrastive(temperature).to(device)
        state = new_state(model, criterion, dtype, origin)
        training.begin(state)
        step = global_step(model, criterion, dtype, micro_batch, dataset["batch_size"])
        torch.manual_seed(seed + rank())  # another dropout on each rank
        return run_training(
            training=training,
            state=state,
            step=step,
            loader=loaders.train,
            validate=lambda: evaluate_global(model, loaders.query, loaders.gallery, recall_ks, dtype),
        )
