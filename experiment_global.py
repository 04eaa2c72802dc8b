"""Train the global descriptor with the contrastive loss (paper, section 3.1)."""

from pathlib import Path

import torch
from sacred import Experiment
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from models.ingredient import load_model, model_ingredient
from sop.ingredient import data_ingredient, get_loaders, input_files
from utils.experiment import begin_run, fit, note_files, reports_errors, set_up
from utils.losses import Contrastive
from utils.training import evaluate_global, parameter_groups, train_global

ex = set_up(Experiment("Global (train)", ingredients=[data_ingredient, model_ingredient]))


@ex.config
def config():
    epochs = 100
    lr = 0.001
    momentum = 0.9
    nesterov = True  # only with momentum
    weight_decay = 4e-4
    no_bias_decay = False  # no weight decay for one-dimensional parameters
    scheduler_tau = [60, 80]  # epochs after which the learning rate is multiplied by scheduler_gamma
    scheduler_gamma = 0.1
    temperature = 0.05
    micro_batch = None  # images that the network holds at a time; None: the whole batch
    temp_dir = "logs/temp"  # where the checkpoint is written
    cpu = False
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    seed = 364086339


@ex.automain
@reports_errors
def main(
    _run,
    _config,
    epochs,
    lr,
    momentum,
    nesterov,
    weight_decay,
    no_bias_decay,
    scheduler_tau,
    scheduler_gamma,
    temperature,
    micro_batch,
    temp_dir,
    cpu,
    cudnn_flag,
    precision,
    seed,
):
    device, dtype = begin_run(_run, cpu, cudnn_flag, precision)
    torch.manual_seed(seed)
    loaders, recall_ks = get_loaders()
    torch.manual_seed(seed)
    model = load_model(loaders.num_classes, None, device)
    note_files(_run, *input_files(training=True))
    groups = parameter_groups(model, no_bias_decay)
    optimizer = SGD(groups, lr, momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0, fused=True)
    scheduler = MultiStepLR(optimizer, scheduler_tau, scheduler_gamma)
    loss = Contrastive(temperature)
    torch.manual_seed(seed)
    return fit(
        _run,
        model,
        optimizer,
        scheduler,
        train=lambda epoch: train_global(
            model, loaders.train, loss, optimizer, scheduler, epoch, _run, dtype, micro_batch
        ),
        validate=lambda: evaluate_global(model, loaders.query, loaders.gallery, recall_ks, dtype),
        epochs=epochs,
        cudnn_flag=cudnn_flag,
        checkpoint=Path(temp_dir) / f"{_config['model']['arch']}_{_config['dataset']['name']}.pt",
    )
