"""An index whose writer is killed at random moments, while a reader searches: for `make soak`.

`python -m tests.soak_index INDEX FOLDER MODEL` is the writer. It says when its imports are done, and when it merges.
"""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from pytest import approx
from tqdm import tqdm

from models.network import RerankingNetwork
from models.settings import NetworkSettings
from rrt import InputError, Match, Reranker, index_upkeep, indexing
from rrt.index import Index, Result, update
from rrt.index_table import array_of, existing_table, open_table, photos_in
from tests import ROOT
from tests.conftest import draw_photo
from tests.rrt.conftest import CROP_SIZE, SETTINGS
from utils.io.disk import stamp

KILLS = 20
NUM_PHOTOS, CHANGED, ADDED, REMOVED = 24, 8, 4, 4  # at first, and before each writer
BATCH_SIZE, MAX_FRAGMENTS = 3, 2
RERANKED = 6
EXPECTED = ("is no index", "was changed during the search: search again")  # errors of a reader
State = frozenset[tuple[str, tuple[int, int, int]]]  # paths and stamps of an index


class Album:
    """Photos that change, and the scores for a query of all that they have been, by path and stamp."""

    def __init__(self, folder: Path, reranker: Reranker):
        self.folder, self.reranker, self.rng, self.painted = folder, reranker, random.Random(0), 0
        draw_photo(folder.with_name("query.jpg"), 0, 0)
        self.query = reranker.embed(folder.with_name("query.jpg"))
        self.scores: dict[tuple[str, tuple[int, int, int]], Match] = {}
        for _ in range(NUM_PHOTOS):
            self.paint(folder / f"{self.painted}.jpg")

    def paint(self, path: Path) -> None:
        self.painted += 1
        draw_photo(path, self.painted, 0)
        (self.scores[str(path), stamp(path)],) = self.reranker.rank(self.query, [path])

    def change(self) -> None:
        chosen = self.rng.sample(sorted(self.folder.iterdir()), CHANGED + REMOVED)
        for path in chosen[:CHANGED] + [self.folder / f"{self.painted + i}.jpg" for i in range(ADDED)]:
            self.paint(path)
        for path in chosen[CHANGED:]:
            path.unlink()

    def states(self, index: Path) -> set[State]:
        """All that an index is in the course of an update."""
        table, given = open_table(index), {str(path): stamp(path) for path in sorted(self.folder.iterdir())}
        rows = {} if table is None else {photo.path: photo.stamp for photo in photos_in(table)}
        missing = [item for item in sorted(given.items()) if rows.get(item[0]) != item[1]]
        states = {frozenset(rows.items()), frozenset(given.items())}
        for start in range(0, len(missing), BATCH_SIZE):
            rows |= dict(missing[start : start + BATCH_SIZE])
            states.add(frozenset(rows.items()))
        return states


class Reader(Thread):
    """Searches until it is stopped; each answer must be of one of `states`, with the scores of its photos."""

    def __init__(self, index: Path, album: Album):
        super().__init__(daemon=True)
        self.index, self.album = index, album
        self.states: set[State] = set()
        self.stopped, self.counts, self.failures = False, Counter[str](), list[str]()

    def run(self) -> None:
        rng, opened = random.Random(0), None
        while not self.stopped:
            before = self.states
            try:
                if opened is None or rng.random() < 0.1:
                    opened = Index(self.index, device="cpu")
                (results,) = opened.search(self.album.query, 1000, rerank=RERANKED)
            except Exception as error:
                kind = next((kind for kind in EXPECTED if kind in str(error) and isinstance(error, InputError)), None)
                self.counts[kind or "failures"] += 1
                if kind is None or (kind == EXPECTED[0] and opened is not None):
                    self.failures.append(repr(error))
                time.sleep(0.01)
            else:
                self.counts["answers"] += 1
                self.failures += self.wrong(results, before | self.states)

    def wrong(self, results: list[Result], states: set[State]) -> Iterator[str]:
        """What is wrong with an answer of all photos."""
        photos = [(result.photo, result.stamp) for result in results]
        if frozenset(photos) not in states or len({*photos}) < len(photos):
            yield f"{len(photos)} photos are of no state"
            return
        for number, (result, photo) in enumerate(zip(results, photos, strict=True)):
            expected = self.album.scores[photo]
            logit = expected.logit if number < RERANKED else None
            if result.cosine != approx(expected.cosine, abs=1e-5) or result.logit != approx(logit, abs=1e-3):
                yield f"{result} should have the scores {expected}"


def writer(index: Path, album: Album, model: Path, merges: bool = False) -> subprocess.Popen:
    """One that begins its update, or merges, now."""
    command = [sys.executable, "-m", "tests.soak_index", *map(str, (index, album.folder, model))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(1 + merges):
        process.stdout.readline()
    return process


def whole(index: Path) -> tuple:
    """Photos, descriptors and maps, by path."""
    rows = existing_table(index).search().to_arrow().sort_by("path")
    return sorted(photos_in(existing_table(index))), array_of(rows, "descriptor"), array_of(rows, "map")


def kills_beside_a_reader(folder: Path) -> Iterator[tuple[bool, str]]:
    """SIGKILL of the writer; the next one goes on, and the last one comes to what a new index has."""
    torch.manual_seed(0)
    network = RerankingNetwork(6, NetworkSettings(pretrained=False, normalize=True, **SETTINGS))
    reranker = Reranker(network, SETTINGS, CROP_SIZE, device="cpu")
    reranker.save_pretrained(folder / "model")
    album, index, rng = Album(folder / "photos", reranker), folder / "index", random.Random(1)
    reader = Reader(index, album)
    timed = writer(folder / "timed", album, folder / "model")
    began = time.monotonic()
    timed.communicate()
    length, killed = time.monotonic() - began, 0
    reader.start()
    while killed < KILLS:
        reader.states = album.states(index)
        merges = rng.random() < 0.5
        process = writer(index, album, folder / "model", merges)
        try:
            errors = process.communicate(timeout=rng.uniform(0, length / 10 if merges else length))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors, killed = process.communicate()[1], killed + 1
        wrong, reader.failures = [errors, *reader.failures][not errors :], []
        yield not wrong, f"kill number {killed} of an index's writer, {merges=}: {wrong}"
        album.change()
    reader.states = album.states(index)
    errors = writer(index, album, folder / "model").communicate()[1]
    writer(folder / "new", album, folder / "model").communicate()
    (photos, *arrays), (expected, *new_arrays) = whole(index), whole(folder / "new")
    differs = [] if photos == expected else ["photos"]
    differs += [
        str(abs(a - b).max()) for a, b in zip(arrays, new_arrays, strict=True) if not np.allclose(a, b, 2e-3, 1e-5)
    ]
    reader.stopped = True
    reader.join()
    tqdm.write(f"the index's reader: {dict(reader.counts)}")
    wrong = [errors, *differs, *reader.failures][not errors :]
    yield not wrong, f"the index in the end: {wrong}"


if __name__ == "__main__":
    indexing.BATCH_SIZE, index_upkeep.MAX_FRAGMENTS = BATCH_SIZE, MAX_FRAGMENTS
    to, photos, made_by = map(Path, sys.argv[1:])
    network = Reranker.from_pretrained(made_by, device="cpu")
    keep_up = indexing.keep_up
    indexing.keep_up = lambda *arguments: print("merges", flush=True) or keep_up(*arguments)
    print("begins", flush=True)
    update(to, photos.iterdir(), network, sync=True, yes=True)
