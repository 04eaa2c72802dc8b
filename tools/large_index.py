"""What an index of many photos takes, with stand-ins: `python -m tools.large_index 100000 INDEX [--crop-size 224]`.

Descriptors are drawn in groups of five, as of products, and maps at random. The network is the published one with
random weights. Prints sizes, times (medians of SEARCHES) and the peak of memory.
"""

import argparse
import resource
import statistics
import subprocess
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from models.network import RerankingNetwork
from models.settings import NetworkSettings
from rrt import Features, Reranker
from rrt.index import Index
from rrt.index_table import Photo, save_model, write
from rrt.index_upkeep import keep_up

BATCH, SEARCHES, GROUP, LATENT = 4096, 20, 5, 32


def measured(name: str, work: Callable[[], object], repeats: int = 1) -> None:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}: {statistics.median(times):.3f} s, peak {peak:.2f} GB {result or ''}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=int)
    parser.add_argument("index")
    parser.add_argument("--crop-size", type=int, default=224, help="32: maps of 1 x 1, where descriptors alone matter")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = RerankingNetwork(2, NetworkSettings(pretrained=False, normalize=True))
    reranker = Reranker(network, NetworkSettings().those("answers"), options.crop_size)
    centres = torch.randn(options.photos // GROUP + 1, LATENT) @ torch.randn(LATENT, 128) / LATENT**0.5
    drawn_maps = torch.randn(2048, 128, options.crop_size // 32, options.crop_size // 32)

    def features(rows: torch.Tensor) -> Features:
        descriptors = F.normalize(centres[rows // GROUP] + 0.4 * torch.randn(len(rows), 128), dim=1)
        return Features(descriptors, drawn_maps[torch.randint(2048, (len(rows),))])

    def write_all() -> None:
        table, digest = None, reranker.digest()
        for rows in torch.arange(options.photos).split(BATCH):
            photos = [Photo(f"/photos/{row % 997}/{row}.jpg", row, row, row) for row in rows.tolist()]
            table = write(options.index, table, digest, photos, features(rows))

    save_model(options.index, reranker)
    measured("writing", write_all)
    index, query = Index(options.index), features(torch.tensor([17]))
    measured("exact search of 100", lambda: len(index.search(query, 100)[0]) and None, SEARCHES)
    measured("merging, approximate index", lambda: f"recall {keep_up(options.index, index.table, True)}")
    measured("search of 100", lambda: len(index.search(query, 100)[0]) and None, SEARCHES)
    where = "size % 10 = 3"
    measured("search of 100, a tenth", lambda: len(index.search(query, 100, where=where)[0]) and None, SEARCHES)
    measured("search and reranking of 100", lambda: len(index.search(query, 100, 100)[0]) and None, SEARCHES)
    print(subprocess.run(["du", "-sh", options.index], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
