"""The head that comes along with a backbone: `python -m tools.make_head PHOTOS --trained-on NAME`.

PHOTOS is a folder with a list train.txt, NAME that of the photos. The head is trained as experiment_rerank.py does with
objective='chamfer' and frozen_views. The weights of the ranking, and the calibration, are fitted on heads that have not
seen the queries' classes: five folds of classes, each scored by a head that was trained on the other four.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader

from models.network import RerankingNetwork
from models.settings import NetworkSettings
from rrt.heads import FILES, Head, digest, head_modules, write_head
from rrt.pretrained import CROP_SIZE
from sop.dataset import ImageSet
from sop.images.transforms import Resizing, test_transform, train_transform
from sop.samplers import TripletSampler
from sop.splits import class_map, read_split
from sop.views import ViewSet
from utils.experiment.fusion import describe
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.crossfit import folds
from utils.retrieval.embedding import embed_views
from utils.retrieval.fitted import fit
from utils.retrieval.knn import nearest_neighbours
from utils.retrieval.pair_scoring import pair_scores
from utils.retrieval.ranking import Candidates, candidate_cosines
from utils.retrieval.results import Labels
from utils.training.losses import CHAMFER
from utils.training.state import parameter_groups
from utils.training.steps import rerank_step

ARCH = "tf_efficientnet_lite0"
IMAGES_AT_ONCE = 64
VIEWS, EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 6, 40, 60, 1e-3, 4e-4  # not searched


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the head of local maps that comes along with a backbone.")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder with a list train.txt")
    parser.add_argument("--trained-on", required=True, metavar="NAME", help="of the photos, for those who use the head")
    parser.add_argument("--to", type=Path, default=FILES[ARCH], metavar="FILE")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sizes: dict[str, Any] = {"num_global_features": None, "num_local_features": 128}
    network = RerankingNetwork(1, NetworkSettings(ARCH, normalize=True, freeze_backbone=True, **sizes))
    photos = Photos(network, options.photos, options.seed)
    candidates = photos.candidates(network, options.seed)
    name = f"{options.trained_on}, as the head {options.to.name}"
    fusion = fit(candidates, Labels(photos.labels, photos.labels, True), False, name)
    print(describe(fusion))
    trained = photos.train(network, np.ones(len(photos.labels), bool), options.seed)
    write_head(Head(options.to, ARCH, digest(network.backbone), fusion, trained.state_dict()))
    print(f"{options.to}: {options.to.stat().st_size:,} bytes")


class Photos:
    """The photos of train.txt as a frozen backbone embeds them."""

    def __init__(self, network: RerankingNetwork, folder: Path, seed: int):
        split = read_split(folder, "train.txt")
        resizing = Resizing(**network.backbone.resizing)

        def embedded(transform, views: int | None = None) -> Tensor:
            images = ImageSet(folder, split, class_map(split), transform)
            self.labels = images.labels
            loader = DataLoader(images if views is None else ViewSet(images, views, seed), IMAGES_AT_ONCE)
            return embed_views(network, loader, torch.float32)

        self.maps = embedded(test_transform(CROP_SIZE, resizing=resizing))
        self.views = embedded(train_transform(CROP_SIZE, resizing=resizing), VIEWS).unflatten(0, (VIEWS, -1))
        self.descriptors = network.global_descriptors(self.maps)

    def train(self, network: RerankingNetwork, chosen: np.ndarray, seed: int) -> nn.ModuleDict:
        """Train the network's `remap_local` on the photos that a mask (n,) chooses, and return the head."""
        torch.manual_seed(seed)
        head = head_modules(network.train())
        assert isinstance(network.remap_local, nn.Conv2d) and network.remap_local.bias is not None
        nn.init.orthogonal_(network.remap_local.weight)
        nn.init.zeros_(network.remap_local.bias)
        neighbours = nearest_neighbours(self.descriptors[chosen], None, MAX_CANDIDATES)[1]
        sampler = TripletSampler(self.labels[chosen], neighbours, BATCH_SIZE, seed)
        views, labels = self.views[:, chosen], torch.from_numpy(self.labels[chosen])
        optimizer = AdamW(parameter_groups(list(head.values()), False, LR), LR, weight_decay=WEIGHT_DECAY)
        scheduler = MultiStepLR(optimizer, [round(0.7 * EPOCHS), round(0.9 * EPOCHS)])
        step = rerank_step(network, nn.ModuleDict({CHAMFER: head[CHAMFER]}), embedded=True)
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            for batch in sampler.global_batches():
                images = torch.tensor([draw.image for draw in batch])
                optimizer.zero_grad()
                step(views[torch.randint(VIEWS, images.shape), images], labels[images], lambda loss: loss)
                optimizer.step()
            scheduler.step()
        return head

    def candidates(self, network: RerankingNetwork, seed: int) -> Candidates:
        """Each photo's candidates among all, scored by a head that has not seen the photo's class."""
        neighbours = nearest_neighbours(self.descriptors, None, MAX_CANDIDATES)[1]
        positions = torch.from_numpy(neighbours)
        chamfer = np.empty(neighbours.shape, np.float32)
        for fold in folds(self.labels):
            self.train(network, ~fold, seed)
            with torch.no_grad():
                maps = network.remap_local(self.maps)
            chamfer[fold] = pair_scores(network, maps[fold], maps, positions[fold], [Chamfer()])[0]
        return Candidates(neighbours, candidate_cosines(self.descriptors, self.descriptors, positions), chamfer, None)


if __name__ == "__main__":
    main()
