"""Batch samplers of the train loader. All draws are determined by (seed, epoch, position in the epoch)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from sop.dataset import Draw
from utils.distributed.collectives import shard_slice
from utils.errors import InputError

HARD_NEIGHBOURS = 100  # negatives come from an anchor's first cached neighbours, as many as published


class EpochSampler(Sampler[list[Draw]]):
    """Yields an epoch's batches as lists of `Draw`; `set_epoch` chooses the epoch, as in torch's DistributedSampler.

    All ranks draw the same batches, and each yields its shard of them.
    """

    group = 1  # number of consecutive images that one rank gets together

    def __init__(self, seed: int):
        self.seed, self.epoch, self.start = seed, 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of batches to skip at its start."""
        self.epoch, self.start = epoch, start

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The image indices of each batch of an epoch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self.global_batches():
            yield batch[self.shard(len(batch))]

    def shard(self, images: int) -> slice:
        """This rank's slice of a batch of `images` images."""
        return shard_slice(images, self.group)

    def global_batches(self) -> Iterator[list[Draw]]:
        """The batches over all ranks."""
        position = 0
        for number, batch in enumerate(self.batches(np.random.default_rng((self.seed, self.epoch)))):
            if number >= self.start:
                yield [Draw(index, (self.seed, self.epoch, position + i)) for i, index in enumerate(batch.tolist())]
            position += len(batch)


class RandomSampler(EpochSampler):
    """Shuffled batches of `num_images` images; the last partial one is dropped."""

    def __init__(self, num_images: int, batch_size: int, seed: int):
        super().__init__(seed)
        if batch_size > num_images:
            raise InputError(f"dataset.batch_size={batch_size}, but there are only {num_images} training images")
        self.num_images, self.batch_size = num_images, batch_size

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def batches(self, rng):
        yield from rng.permutation(self.num_images)[: len(self) * self.batch_size].reshape(-1, self.batch_size)


class RandomIdentitySampler(EpochSampler):
    """`num_iterations` batches of `num_identities` different classes, `batch_size / num_identities` images each.

    Both are drawn uniformly without replacement, from the classes with enough images; images of a class are adjacent.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, num_identities: int, num_iterations: int, seed: int):
        super().__init__(seed)
        if not 0 < num_identities <= batch_size or batch_size % num_identities:
            raise InputError(
                f"dataset.batch_size={batch_size} is no multiple of dataset.num_identities={num_identities}: each "
                "class gives the same number of images to a batch"
            )
        self.images = ImagesByClass(labels)
        self.images_per_class, self.num_identities, self.num_iterations = (
            batch_size // num_identities,
            num_identities,
            num_iterations,
        )
        self.eligible = np.flatnonzero(self.images.counts >= self.images_per_class)
        if num_identities > len(self.eligible):
            raise InputError(
                f"dataset.num_identities={num_identities}, but only {len(self.eligible)} training classes have "
                f"{self.images_per_class} or more images: lower dataset.batch_size, dataset.num_identities or "
                "dataset.sample_per_id"
            )

    def __len__(self) -> int:
        return self.num_iterations

    def batches(self, rng):
        for _ in range(self.num_iterations):
            classes = rng.choice(self.eligible, self.num_identities, replace=False)
            counts = self.images.counts[classes]
            starts = np.cumsum(counts) - counts  # of each class in a list of all images of the drawn classes
            place = np.arange(counts.sum()) - np.repeat(starts, counts)
            shuffled = np.lexsort((rng.random(len(place)), np.repeat(np.arange(len(classes)), counts)))
            first = shuffled[place < self.images_per_class]
            yield self.images.order[np.repeat(self.images.starts[classes], counts)[first] + place[first]]


class TripletSampler(EpochSampler):
    """Anchor, positive, negative, anchor, ...: every training image is an anchor once, in random order.

    The positive is uniform among the other images of the anchor's class, the negative among those of its first 100
    `neighbours` (n, K) of another class. Anchors without another image of their class are skipped; anchors
    whose neighbours are all of their class get a random image of another class. The last, partial batch is kept.

    An anchor may have several negatives, different ones. One with fewer neighbours of another class gets each of them,
    and draws again among them for the rest; random images of another class may repeat.
    """

    def __init__(self, labels: np.ndarray, neighbours: np.ndarray, batch_size: int, seed: int, num_negatives: int = 1):
        super().__init__(seed)
        self.num_negatives, self.group = num_negatives, 2 + num_negatives
        if batch_size % self.group:
            raise InputError(
                f"dataset.batch_size={batch_size} is no multiple of {self.group}, but the sampler 'triplet' needs one"
                + (f" for num_negatives={num_negatives}" if num_negatives > 1 else "")
            )
        self.images, self.labels = ImagesByClass(labels), labels
        self.neighbours = neighbours[:, :HARD_NEIGHBOURS].copy()  # frees the array of a file with more columns
        if num_negatives > self.neighbours.shape[1]:
            raise InputError(
                f"num_negatives={num_negatives}, but negatives come from the first {self.neighbours.shape[1]} "
                "neighbours in dataset.train_cache_nn_inds: give fewer"
            )
        self.anchors = np.flatnonzero(self.images.counts[labels] > 1)
        self.per_batch = batch_size // self.group
        if not len(self.anchors) or len(self.images.counts) < 2:
            raise InputError("the sampler 'triplet' needs two training classes, and one class with two images")
        self.hard = labels[self.neighbours] != labels[:, None]
        without_hard = int((~self.hard[self.anchors].any(axis=1)).sum())
        if without_hard or len(self.anchors) < len(labels):
            print(
                f"triplets: {len(labels) - len(self.anchors)} images alone in their class are no anchors; "
                f"{without_hard} anchors with no neighbour of another class take a random negative"
            )

    def __len__(self) -> int:
        return -(-len(self.anchors) // self.per_batch)

    def batches(self, rng):
        """An epoch's triplets are drawn at once. To leave out a range of places, draw among as many as are left, and
        step over the range.

        Say the images, in the order of their classes, are 0 0 1 1 1 2, and the anchor is at place 3, rank 1 of class 1.
        The positive is one of 2 others: j = 0 is place 2, and j = 1, a step over the anchor, place 4. The negative is
        one of 3 others: j = 0 and 1 are places 0 and 1, and j = 2, a step over the class, place 5.
        """
        anchors = rng.permutation(self.anchors)
        images, classes = self.images, self.labels[anchors]
        j = rng.integers(images.counts[classes] - 1)
        positives = images.order[images.starts[classes] + j + (j >= images.rank[anchors])]
        others = len(self.labels) - images.counts[classes]
        j = rng.integers(others, size=(self.num_negatives, len(anchors)))
        random_negatives = images.order[j + images.counts[classes] * (j >= images.starts[classes])]
        # neighbours of another class, counted along each row: the first to reach j + 1 is number j
        counted = np.cumsum(self.hard[anchors], axis=1, dtype=np.uint8)
        drawn = draw_different(rng, counted[:, -1].astype(np.int64), self.num_negatives)
        hard_negatives = [self.neighbours[anchors, (counted > j[:, None]).argmax(axis=1)] for j in drawn]
        negatives = np.where(counted[:, -1] > 0, hard_negatives, random_negatives)
        groups = np.stack((anchors, positives, *negatives), axis=1)
        for start in range(0, len(anchors), self.per_batch):
            yield groups[start : start + self.per_batch].ravel()


def draw_different(rng: np.random.Generator, counts: np.ndarray, n: int) -> np.ndarray:
    """Uniform numbers (n, rows) below each row's count: different ones, and any of them when all are drawn.

    The next number of a row is one of those that are left, and steps over the drawn ones in rising order. Say 0 and 2
    of 4 are drawn: j = 1 steps over 0 to 2, over 2 to 3. A count of 0 gives 0.
    """
    drawn = np.empty((n, len(counts)), np.int64)
    for i in range(n):
        is_left = counts > i
        drawn[i] = rng.integers(np.where(is_left, counts - i, np.maximum(counts, 1)))
        for number in np.sort(drawn[:i], axis=0):
            drawn[i] += is_left & (drawn[i] >= number)
    return drawn


class ImagesByClass:
    """Image indices grouped by their labels 0 ... n-1.

    Class c holds `order[starts[c] : starts[c] + counts[c]]`; image i is number `rank[i]` of its class.
    """

    def __init__(self, labels: np.ndarray):
        self.counts = np.bincount(labels)
        self.starts = np.cumsum(self.counts) - self.counts
        self.order = np.argsort(labels, kind="stable")
        self.rank = np.empty(len(labels), np.int64)
        self.rank[self.order] = np.arange(len(labels)) - np.repeat(self.starts, self.counts)
