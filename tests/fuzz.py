"""Readers of files that others may have made, fed with damaged and hostile ones.

Each must end in a good result or in one clear error: no traceback, no hang, no memory beyond what the file's size calls
for, and no code run. `python -m tests.soak` has 10,000 files read by each, `test_fuzz.py` a few.
"""

import pickle
import shutil
import signal
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from sop.preparation.archive import read_list, unpack
from sop.splits import class_map, read_split
from utils.errors import InputError
from utils.io.checkpoint import TrainingInfo, checkpoint_content, load_weights, save_tensors
from utils.io.neighbours import load_neighbours, pickle_save
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables
from utils.retrieval.ranking import Candidates
from utils.retrieval.results import Labels, load_scores, save_scores
from utils.runtime.memory import peak_memory
from utils.store.feature_cache import DIMS, kept_features
from utils.text import markdown_table, text_table
from utils.training.resume import (
    TrainingFiles,
    check_continues,
    read_last,
    restore,
    restore_random_state,
    run_signature,
)
from utils.training.state import TrainingState

SECONDS = 30  # for one file
MEMORY = 1 << 30  # bytes above what was held before
RUNNING = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"}  # audit events
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
SNIPPETS = (
    *(b"\0", b"\xff" * 8, b"cos\nsystem\n", b"r\0\0\0\x10", b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7, b"PK\3\4"),
    *(b"NaN", b"1e999", b"-1", b"9" * 5000, b"null", b"{}", b"[" * 3000, b"\\ud800", b"\xef\xbb\xbf"),
    *(b"../", b"/", b","),
)
LENGTHS = st.sampled_from((0, 1, 2, 4, 8, 64, 1024, 1 << 30))
PLACES = st.integers(0, 1 << 20)
NEW_BYTES = (
    st.binary(max_size=64)
    | st.sampled_from(SNIPPETS)
    | st.builds(int.to_bytes, st.sampled_from(NUMBERS), st.just(8), st.sampled_from(("little", "big")))
)
# places and lengths of what goes, and what comes: new bytes, or the place and the length of others of the file
CHANGES = st.lists(st.tuples(PLACES, LENGTHS, NEW_BYTES | st.tuples(PLACES, LENGTHS)), min_size=1, max_size=16)


def changed(content: bytes, changes: list) -> bytes:
    """The content after some of `CHANGES`; places go round."""
    result = bytearray(content)
    for place, length, new in changes:
        if isinstance(new, tuple):
            start = new[0] % (len(result) + 1)
            new = result[start : start + new[1]]
        place %= len(result) + 1
        result[place : place + length] = new
    return bytes(result)


class Reader(NamedTuple):
    """What is read: `make` leaves a folder with good files, `read` reads it."""

    make: Callable[[Path], list[Path]]  # returns those to damage
    read: Callable[[Path], object]


class Tiny(torch.nn.Module):
    """The smallest network that a checkpoint can be of."""

    def __init__(self):
        super().__init__()
        self.conv1, self.classifier = torch.nn.Conv2d(3, 2, 1), torch.nn.Linear(2, 3)

    def fingerprint(self):
        return [self.conv1.weight.detach().numpy().tobytes()]


def tiny_state() -> TrainingState:
    model = Tiny()
    optimizer = AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return TrainingState.new(
        model, optimizer, MultiStepLR(optimizer, [1]), torch.float32, origin=TrainingInfo({"a": 1}, True)
    )


ABOUT = run_signature({"lr": 1, "model": {"arch": "x"}}, ["0" * 32], "cpu") | {
    "epochs": 3,
    "run_id": "1",
    "folder": None,
    "photos": [5, -1],
}


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
    save_tensors(folder / "c.pt", checkpoint_content(state.model, state.optimizer, state.scheduler, state.origin))
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
        restore_random_state(content)


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

    def fingerprint(self) -> dict[str, str]:
        return {"photos": "1"}


def features_of(folder: Path) -> None:
    """The values must be the right ones."""
    torch.manual_seed(0)
    expected = [torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3, 1, 1)]
    kept = kept_features(
        folder, Tiny(), Images(), torch.float32, list(DIMS), lambda start: [[part[start:] for part in expected]]
    )
    assert kept is not None
    assert all(torch.equal(part[:], values) for part, values in zip(kept, expected, strict=True))


def make_features(folder: Path) -> list[Path]:
    features_of(folder)
    return list(folder.glob("*/store.json"))  # a bit that is lost in the numbers goes unnoticed


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


class Hostile(BaseException):
    """What a reader must not do; no code of ours catches it."""


@contextmanager
def watched() -> Iterator[None]:
    """In the block, Hostile is raised for code that is run, and after `SECONDS`."""

    def ring(number, frame):
        raise Hostile(f"hangs over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    Watch.is_on = True
    try:
        yield
    finally:
        Watch.is_on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """Whether code that is run is noticed."""

    is_on = False


@sys.addaudithook
def notice(event: str, arguments) -> None:
    if Watch.is_on and event in RUNNING:
        raise Hostile(f"runs code: {event} {arguments}")


def fuzz(name: str, folder: Path, count: int) -> Counter[str]:
    """Damage the files of a reader `count` times, always the same ones: how often each outcome came.

    Raises what a reader raised or did wrong, with the changes to the file that are simplest.
    """
    reader, outcomes = READERS[name], Counter[str]()
    originals = {path: path.read_bytes() for path in reader.make(folder)}
    reader.read(folder)
    held = peak_memory()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(sorted(originals)), CHANGES)
    def read(path, changes):
        nonlocal held
        for original, content in originals.items():
            original.write_bytes(content)
        path.write_bytes(changed(originals[path], changes))
        try:
            with watched(), warnings.catch_warnings(action="ignore"):
                reader.read(folder)
            outcomes["good"] += 1
        except InputError:
            outcomes["clear error"] += 1
        except Hostile as error:
            error.add_note(f"{path.name}, {changes}")
            raise
        taken, held = peak_memory() - held, max(held, peak_memory())
        is_allowed = taken < MEMORY or name == "neighbour files"  # a pickle may ask for any
        assert is_allowed, f"{taken / 1e9} GB more"

    read()
    return outcomes
