"""`rrt index` by two ranks: what it writes and says is what one process does."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from rrt import indexing
from rrt.__main__ import main
from rrt.index import Index, update
from rrt.index_table import array_of, existing_table, photos_in
from tests import ROOT
from utils.io.lock import exclusive_lock

SMALL_BATCHES = """
import os, signal, sys
from rrt import Reranker, indexing
from rrt.__main__ import main
indexing.BATCH_SIZE = 2
"""
KILLED = """
embed, calls = Reranker.embed_pixels, iter(range(9))
def embed_until_killed(self, pixels):
    if os.environ["RANK"] == "1" and next(calls) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, pixels)
Reranker.embed_pixels = embed_until_killed
"""
RUN = "sys.exit(main(sys.argv[1:]))"


def of_ranks(*arguments, code: str = SMALL_BATCHES + RUN) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each of two ranks, without torchrun, which would end one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | address | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def rows_of(index):
    """Photos, descriptors and maps, by path."""
    rows = existing_table(index).search().to_arrow().sort_by("path")
    return sorted(photos_in(existing_table(index))), array_of(rows, "descriptor").copy(), array_of(rows, "map").copy()


@pytest.fixture
def model(saved):
    return ["--model", saved]


@pytest.fixture(autouse=True)
def one_thread():
    """As the ranks have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_ranks_index_as_one_process(model, paths, reranker, tmp_path, capsys, monkeypatch):
    """By torchrun. Both embed four photos at once, and then three: the last two, of rank 1's slice, are damaged."""
    monkeypatch.setattr(indexing, "BATCH_SIZE", 4)
    damaged = [tmp_path / name for name in ("a.jpg", "z.jpg")]
    for path in damaged:
        path.write_text("no photo")
    assert max(paths) < damaged[0]
    of_call = [*paths, *damaged, *model]
    assert main(["index", "--to", str(tmp_path / "one"), *map(str, of_call)]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "rrt"]
    command = [sys.executable, *launch, "index", "--to", tmp_path / "two", *of_call]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = capsys.readouterr()
    assert done.stdout == expected.out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert one[0] == two[0] and len(one[0]) == 7
    for features, of_one in zip(two[1:], one[1:], strict=True):
        assert (features == of_one).all()
    first, second = (line for line in expected.err.splitlines() if line.startswith("photo "))
    assert f"rank 1: {first}\nrank 1: {second}\n" in done.stderr
    query = reranker.embed(paths[0])
    ((results,), (found,)) = (Index(tmp_path / name, "cpu").search(query, 7, rerank=7) for name in ("one", "two"))
    for result, expected_result in zip(found, results, strict=True):
        assert (result.photo, result.stamp) == (expected_result.photo, expected_result.stamp)
        assert result[1:4] == pytest.approx(expected_result[1:4], abs=1e-4)


def test_an_error_of_rank_0_is_said_once(model, paths, reranker, tmp_path):
    index = tmp_path / "index"
    update(index, paths[:2], reranker)
    with exclusive_lock(index / ".lock", "", ""):
        (code, out, error), *others = of_ranks("index", *paths, "--to", index, *model)
    assert (code, out) == (1, "") and error.startswith(f"{index} is being written by process {os.getpid()} on ")
    assert error.count("\n") == 1 and others == [(0, "", "")]
    assert len(photos_in(existing_table(index))) == 2


def test_a_rank_is_killed(model, paths, reranker, tmp_path):
    """Batches of four photos; rank 1 dies in the second one, and the next call goes on."""
    index = tmp_path / "index"
    (code, _, error), (killed, *_) = of_ranks("index", *paths, "--to", index, *model, code=SMALL_BATCHES + KILLED + RUN)
    assert (code, killed) == (1, -signal.SIGKILL) and "RuntimeError" in error
    assert update(index, paths, reranker)[:3] == (7, 3, 0)


def test_a_rank_that_cannot_use_the_network(model, paths, tmp_path):
    """Without a GPU for each rank."""
    no_gpu = "import torch; torch.cuda.is_available = lambda: os.environ['RANK'] == '1'\n"
    (code, out, error), other = of_ranks(
        "index", *paths, "--to", tmp_path / "index", *model, code=SMALL_BATCHES + no_gpu + RUN
    )
    assert (code, out, other) == (1, "", (0, "", ""))
    assert error.startswith("rank 1: local rank 1 has no GPU: this machine has 0, start as many ranks")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(("failing", "message"), [("0", ""), ("1", "rank 1: ")])
def test_an_error_of_a_rank_while_it_embeds(model, paths, tmp_path, failing, message):
    code = f"""
def fails(self, pixels):
    raise rrt.InputError("no memory")
if os.environ["RANK"] == "{failing}":
    rrt.Reranker.embed_pixels = fails
"""
    (code, out, error), other = of_ranks(
        "index", *paths, "--to", tmp_path / "index", *model, code=SMALL_BATCHES + "import rrt" + code + RUN
    )
    assert (code, out, other) == (1, "", (0, "", "")) and error.endswith(f"{message}no memory\n")


def test_ranks_of_others_are_ignored(reranker, paths, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert update(tmp_path / "index", paths, reranker)[:3] == (7, 7, 0)
