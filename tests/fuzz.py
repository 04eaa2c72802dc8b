"""Readers of files that others may have made, fed with damaged and hostile ones.

Each must end in a good result or in one clear error: no traceback, no hang, no memory beyond what the file's size calls
for, and no code run. `python -m tests.soak` has 10,000 files read by each, `test_fuzz.py` a few.
"""

import pickle
import random
import shutil
import signal
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from sop.preparation.archive import read_list, unpack
from sop.splits import class_map, read_split
from utils.caches import load_neighbours, pickle_save
from utils.checkpoint import Origin, load_weights, save_checkpoint
from utils.continuing import TrainingFiles, check_continues, describe, read_last, restore
from utils.errors import InputError
from utils.evaluation import Labels
from utils.features import kept_features
from utils.fusion import Candidates
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables, markdown_table, text_table
from utils.memory import peak_memory
from utils.scores import load_scores, save_scores
from utils.training import TrainingState

SECONDS = 10  # for one file
MEMORY = 1 << 30  # bytes above what was held before
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
SNIPPETS = (
    *(b"\0", b"\xff" * 8, b"cos\nsystem\n", b"r\0\0\0\x10", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7, b"PK\3\4"),
    *(
        b"NaN",
        b"1e999",
        b"-1",
        b"9" * 5000,
        b"null",
        b"{}",
        b"[" * 3000,
        b"\\ud800",
        b"\xef\xbb\xbf",
        b"../",
        b"/",
        b",",
    ),
)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a few random changes."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(result) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(8)
        if kind == 0 and result:
            result[place % len(result)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del result[place : place + length]
        elif kind == 3:
            del result[place:]
        elif kind == 4:
            result[place:place] = result[place : place + length]
        elif kind == 5:
            result[place:place] = rng.choice(SNIPPETS)
        elif kind == 6:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % (1 << 8 * size)
            result[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))
        else:
            other = rng.randrange(len(result) + 1)
            result[place : place + length] = result[other : other + length]
    return bytes(result)


class Reader(NamedTuple):
    """What is read: `make` leaves a folder with good files, `read` reads it."""

    make: Callable[[Path], list[Path]]  # returns those to damage
    read: Callable[[Path], object]


class Tiny(torch.nn.Module):
    """The smallest network that a checkpoint can be of."""

    normalize, norm_layer = True, None

    def __init__(self):
        super().__init__()
        self.conv1, self.classifier = torch.nn.Conv2d(3, 2, 1), torch.nn.Linear(2, 3)


def tiny_state() -> TrainingState:
    model = Tiny()
    optimizer = AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return TrainingState.new(
        model, optimizer, MultiStepLR(optimizer, [1]), torch.float32, origin=Origin({"a": 1}, True)
    )


ABOUT = describe({"lr": 1, "model": {"arch": "x"}}, ["0" * 32], "cpu") | {"epochs": 3, "run_id": "1", "folder": None}


def make_splits(folder: Path) -> list[Path]:
    (folder / "train.txt").write_text("\n".join(f"a_final/{i}_{j}.JPG,{i}" for i in range(5) for j in range(3)))
    lines = "\n".join(f"{i} {i // 3 + 1} 1 a_final/{i}.JPG" for i in range(1, 9))
    (folder / "Ebay_train.txt").write_text(f"image_id class_id super_class_id path\n{lines}\n")
    return [folder / "train.txt", folder / "Ebay_train.txt"]


def read_splits(folder: Path) -> None:
    class_map(read_split(folder, "train.txt"))
    read_list(folder / "Ebay_train.txt")


def make_neighbours(folder: Path) -> list[Path]:
    array = np.array([[(i + j) % 20 for j in range(1, 6)] for i in range(20)])
    pickle_save(folder / "3.pkl", array)
    for protocol in (0, 2, 4, 5):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(array, protocol))
    return sorted(folder.glob("*.pkl"))


def each(paths: list[Path], read: Callable[[Path], object]) -> None:
    """Read all: the first that is refused is the outcome."""
    for path in paths:
        read(path)


def make_checkpoint(folder: Path) -> list[Path]:
    state = tiny_state()
    save_checkpoint(folder / "c.pt", state.model, state.optimizer, state.scheduler, state.origin)
    torch.save(state.model.state_dict(), folder / "former.pt", _use_new_zipfile_serialization=False)
    return [folder / "c.pt", folder / "former.pt"]


def make_last(folder: Path) -> list[Path]:
    state = tiny_state()
    state.best, state.scalars = 1.0, [("train.loss", 0.5, 0.0)]
    TrainingFiles(folder / "c.pt", ABOUT).save_last(state)
    return [folder / "last.pt"]


def continue_last(folder: Path) -> None:
    content = read_last(folder)
    if content is not None:
        check_continues(content, ABOUT)
        restore(tiny_state(), content)


def make_scores(folder: Path) -> list[Path]:
    neighbours = np.array([[(i + j) % 20 for j in range(1, 6)] for i in range(20)])
    scores = np.random.default_rng(0).random((3, 20, 5), np.float32)
    save_scores(folder, Candidates(neighbours, *scores), Labels(np.arange(20) // 4, np.arange(20) // 4, True))
    pickle_save(folder / "nn_inds.pkl", neighbours)
    return [folder / "scores.npz", folder / "nn_inds.pkl"]


class Images:
    """Two photos."""

    paths = ("a", "b")

    def __len__(self):
        return 2

    def made_from(self) -> dict[str, str]:
        return {"photos": "1"}


def features_of(folder: Path) -> list[torch.Tensor]:
    torch.manual_seed(0)
    images = Images()
    features = [torch.ones(2, 3), torch.ones(2, 3, 1, 1)]
    kept = kept_features(folder, Tiny(), images, torch.float32, lambda: features)
    assert [part.shape for part in kept] == [part.shape for part in features]
    return kept


def make_features(folder: Path) -> list[Path]:
    features_of(folder)
    return list(folder.glob("*.pt"))


def make_archive(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "sop.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("Ebay_train.txt", "Ebay_test.txt", "a_final/1.JPG", "a_final/2.JPG"):
            archive.writestr(f"Top/{name}", f"{name} " * 50)
    return [folder / "sop.zip"]


def unpack_archive(folder: Path) -> None:
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    unpack(folder / "sop.zip", folder / "unpacked" / "sop")


def make_run_folder(folder: Path) -> list[Path]:
    example = Path(__file__).parent.parent / "logs" / "example_demo_global"
    for name in ("run.json", "config.json", "info.json", "metrics.json", "cout.txt"):
        (folder / name).write_bytes((example / name).read_bytes())
    return list(folder.iterdir())


def read_run_folder(folder: Path) -> None:
    runs = [read_run(path) for path in find_run_folders(folder)]
    if runs:
        text = as_tables(runs, text_table) + as_tables(runs, markdown_table, "## ") + as_csv(runs)
        text.encode()


READERS = {
    "split files": Reader(make_splits, read_splits),
    "neighbour files": Reader(
        make_neighbours, lambda folder: each(sorted(folder.glob("*.pkl")), lambda path: load_neighbours(path, 20, 20))
    ),
    "checkpoints": Reader(
        make_checkpoint,
        lambda folder: each(sorted(folder.glob("*.pt")), lambda path: load_weights(path, Tiny(), False, {"a": 1})),
    ),
    "last.pt": Reader(make_last, continue_last),
    "scores.npz": Reader(make_scores, load_scores),
    "features": Reader(make_features, features_of),
    "archives": Reader(make_archive, unpack_archive),
    "Sacred folders": Reader(make_run_folder, read_run_folder),
}


class Hang(BaseException):
    """A reader took longer than `SECONDS`."""


@contextmanager
def in_time() -> Iterator[None]:
    def ring(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, folder: Path, count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Damage the files of a reader `count` times: how often each outcome came, and what went wrong, with its number."""
    reader, outcomes, wrong = READERS[name], Counter[str](), []
    originals = {path: path.read_bytes() for path in reader.make(folder)}
    reader.read(folder)
    held = peak_memory()
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        for path, content in originals.items():
            path.write_bytes(content)
        path = rng.choice(sorted(originals))
        path.write_bytes(mutated(originals[path], rng))
        try:
            with in_time(), warnings.catch_warnings(action="ignore"):
                reader.read(folder)
            outcome = "good"
        except InputError:
            outcome = "clear error"
        except Hang:
            outcome = "hang"
        except Exception as error:
            outcome = f"traceback: {type(error).__name__}"
        if peak_memory() > held + MEMORY:
            outcome, held = "memory", peak_memory()
        outcomes[outcome] += 1
        if outcome not in ("good", "clear error"):
            wrong.append(f"{name}, number {number} of seed {seed}, {path.name}: {outcome}")
    return outcomes, wrong
