"""The `dataset` and `model` ingredients as the commands see them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from sop.images.transforms import Resizing
from sop.ingredient import get_loaders
from sop.views import EmbeddedViews
from utils.errors import InputError
from utils.io.neighbours import save_neighbours
from utils.retrieval.embedding import _local_loader
from utils.retrieval.ranking import Ranking
from utils.retrieval.results import save_evaluation

SETTINGS = {
    "image_cache": None,
    "decode": "exact",
    "skip_unreadable": False,
    "train_file": "train.txt",
    "test_file": "test.txt",
    "val_file": None,
    "batch_size": 6,
    "sample_per_id": 2,
    "test_batch_size": 8,
    "sampler": "random",
    "num_workers": 0,
    "pin_memory": True,
    "crop_size": 32,
    "recalls": [1, 10],
    "num_identities": 3,
    "num_iterations": 4,
    "train_cache_nn_inds": None,
}


def loaders_of(photos, **changes):
    return get_loaders(**{"data_path": photos, **SETTINGS, **changes})[0]


def config(ex, *named_configs, **updates):
    return ex.run("print_config", config_updates=updates, named_configs=named_configs).config


TRAINING = {
    "epochs": 100,
    "weight_decay": 4e-4,
    "scheduler_tau": [60, 80],
    "scheduler_gamma": 0.1,
    "temp_dir": "logs/temp",
    "no_bias_decay": False,
}
GLOBAL = TRAINING | {"lr": 0.001, "momentum": 0.9, "nesterov": True, "temperature": 0.05, "seed": 364086339}
NEIGHBOURS = "rrt_sop_caches/rrt_r50_sop_nn_inds_test.pkl"
RERANK = TRAINING | {"lr": 0.0001, "resume": None, "cache_nn_inds": NEIGHBOURS, "seed": 459858808}
EVALUATION = {"seed": 0, "resume": None, "temp_dir": "logs/temp", "cache_nn_inds": "caches/sop/nn_inds_test.pkl"}


@pytest.mark.parametrize(
    ("ex", "name", "defaults"),
    [
        (eval_global.ex, "Global (eval)", {"seed": 0, "resume": None, "temp_dir": "outputs/temp", "query_set": "test"}),
        (eval_rerank.ex, "Rerank (eval)", EVALUATION),
        (experiment_global.ex, "Global (train)", GLOBAL),
        (experiment_rerank.ex, "Rerank (train)", RERANK),
    ],
)
def test_defaults_of_the_scripts(ex, name, defaults):
    got = config(ex)
    assert ex.path == name
    assert (defaults | {"cpu": False, "cudnn_flag": "benchmark"}).items() <= got.items()


def test_defaults_of_the_ingredients():
    got = config(eval_global.ex)
    assert got["dataset"] == {
        "name": "sop",
        "data_path": "data/Stanford_Online_Products",
        "train_file": "train.txt",
        "test_file": "test.txt",
        "val_file": None,
        "batch_size": 128,
        "sample_per_id": 2,
        "test_batch_size": 256,
        "sampler": "random",
        "num_workers": 8,
        "pin_memory": True,
        "crop_size": 224,
        "decode": "exact",
        "image_cache": None,
        "skip_unreadable": False,
        "recalls": [1, 10, 100, 1000],
        "num_identities": 64,
        "num_iterations": 465,
        "train_cache_nn_inds": None,
        "test_cache_nn_inds": None,
    }
    assert got["model"] == {
        "arch": "resnet50",
        "pretrained": True,
        "dropout": 0.0,
        "norm_layer": None,
        "remap": False,
        "detach": False,
        "normalize": False,
        "set_bn_eval": True,
        "normalize_weight": False,
        "freeze_backbone": False,
        "backbone_lr": None,
        "grad_checkpointing": False,
        "num_global_features": 128,
        "num_local_features": 128,
        "local_size": None,
        "pool": "avg",
        "ert_seq_len": 102,
        "ert_dim_feedforward": 1024,
        "ert_nhead": 4,
        "ert_num_encoder_layers": 6,
        "ert_dropout": 0.0,
        "ert_activation": "relu",
        "ert_normalize_before": False,
    }


def test_named_configs_and_derived_values():
    got = config(experiment_global.ex, "dataset.sop_global", "model.resnet50", dataset={"batch_size": 400})
    assert got["model"]["normalize"] is True
    expected = {"name": "sop_global", "batch_size": 400, "test_batch_size": 800, "sampler": "random_id"}
    assert (expected | {"num_identities": 200, "num_iterations": 148}).items() <= got["dataset"].items()
    data = config(experiment_rerank.ex, "dataset.sop_rerank")["dataset"]
    expected = {"name": "sop_rerank", "batch_size": 300, "test_batch_size": 600, "sampler": "triplet"}
    assert (expected | {"num_identities": 150, "num_iterations": 198, "recalls": [1, 10, 100]}).items() <= data.items()
    for part in ("train", "test"):
        assert data[f"{part}_cache_nn_inds"] == f"rrt_sop_caches/rrt_r50_sop_nn_inds_{part}.pkl"


def test_loaders(photos):
    loaders = loaders_of(photos)
    assert loaders.num_classes == 6
    assert loaders.gallery is None
    images, labels, positions = next(iter(loaders.query))
    assert (images.shape, images.dtype) == ((8, 3, 32, 32), torch.uint8)
    assert (labels.tolist(), positions.tolist()) == ([0] * 4 + [1] * 4, list(range(8)))
    assert len(loaders.query_train.dataset) == 24
    assert [len(labels) for _, labels, _ in loaders.train] == [6] * 4


def test_settings_have_their_defaults_outside_a_run(photos, monkeypatch):
    monkeypatch.setattr(get_loaders, "config", {})
    loaders, recall_ks = get_loaders(data_path=photos, batch_size=6, num_workers=0, sampler="random_id", crop_size=32)
    assert (recall_ks, loaders.query.batch_size, len(loaders.train)) == ([1, 10, 100, 1000], 256, 59551 // 6)
    assert loaders.train.batch_sampler.num_identities == 3


@pytest.mark.parametrize(("batch_size", "identities", "batches"), [(6, 3, 4), (10, 5, 2), (18, 6, 1)])
def test_as_many_iterations_as_images_allow(photos, batch_size, identities, batches):
    changes = {"sampler": "random_id", "num_iterations": None, "batch_size": batch_size, "num_identities": identities}
    assert len(loaders_of(photos, **changes).train) == batches


def test_faster_decoding_draws_the_same(photos):
    images = {}
    for decode in ("exact", "fast"):
        torch.manual_seed(0)
        loaders = loaders_of(photos, decode=decode)
        images[decode] = [next(iter(loader)) for loader in (loaders.train, loaders.query, loaders.query_train)]
    for exact, fast in zip(*images.values(), strict=True):
        assert torch.equal(exact[2], fast[2])
        assert fast[0].dtype == torch.uint8
        assert not torch.equal(exact[0], fast[0])
        assert (exact[0].float() - fast[0].float()).abs().mean() < 16


def test_all_images_are_resized_as_the_backbone_asks(photos):
    def batches(**resizing):
        torch.manual_seed(0)
        loaders = loaders_of(photos, **resizing)
        return [next(iter(loader))[0] for loader in (loaders.train, loaders.query, loaders.query_train)]

    default, whole, bicubic = (
        batches(resizing=resizing) for resizing in (Resizing(), Resizing(crop_fraction=1.0), Resizing("bicubic"))
    )
    assert torch.equal(default[0], whole[0])  # a random crop is resized to its own size
    assert not any(map(torch.equal, default[1:], whole[1:])) and not any(map(torch.equal, default, bicubic))


def test_query_and_gallery_files_share_one_class_map(photos):
    lines = (photos / "test.txt").read_text().splitlines()
    (photos / "query.txt").write_text("\n".join(lines[8:10] + lines[16:17]))
    (photos / "gallery.txt").write_text("\n".join(lines[10:16]))
    loaders = loaders_of(photos, test_file=["query.txt", "gallery.txt"])
    assert loaders.query.dataset.labels.tolist() == [0, 0, 2]
    assert loaders.gallery.dataset.labels.tolist() == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, r"dataset\.batch_size=7 is no multiple of dataset\.sample_per_id=2"),
        ({"sampler": "best"}, r"dataset\.sampler='best' is unknown: choose from 'random', 'random_id', 'triplet'"),
        ({"sampler": "triplet"}, r"'triplet' needs dataset\.train_cache_nn_inds"),
        ({"sampler": "triplet", "train_cache_nn_inds": "none.pkl"}, r"none\.pkl could not be read: No such file"),
        ({"decode": "gpu"}, r"dataset\.decode='gpu' is unknown: choose from 'exact', 'fast'"),
        ({"test_file": ["a", "b", "c"]}, r"dataset\.test_file=.*give one file, or two"),
    ],
)
def test_settings_that_do_not_fit(photos, changes, message):
    with pytest.raises(InputError, match=message):
        loaders_of(photos, **changes)


def test_memory_is_pinned_for_a_gpu_only(photos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pinned = [loaders_of(photos, device=kind and torch.device(kind)).query.pin_memory for kind in ("cpu", "cuda", None)]
    assert pinned == [False, True, True]
    assert not loaders_of(photos, pin_memory=False).query.pin_memory


def test_training_validates_on_a_file_of_its_own(photos):
    (photos / "val.txt").write_text("\n".join((photos / "train.txt").read_text().splitlines()[:6]))
    loaders = loaders_of(photos, val_file="val.txt", test_file=["test.txt", "test.txt"])
    assert (len(loaders.query.dataset), loaders.gallery) == (6, None)
    evaluated = loaders_of(photos, val_file="val.txt", training=False)
    assert len(evaluated.query.dataset) == 20


def test_evaluation_does_not_read_the_train_cache(photos):
    assert loaders_of(photos, sampler="triplet", train_cache_nn_inds="none.pkl", training=False).train is None


def test_neighbour_file_of_the_other_split(photos, tmp_path):
    file = tmp_path / "nn_inds.pkl"
    save_neighbours(tmp_path, np.zeros((24, 3)), np.zeros((24, 3)))
    with pytest.raises(InputError, match=r"has 24 rows, expected 20, .* as many as the training images"):
        loaders_of(photos).neighbours(file)
    save_neighbours(tmp_path, np.zeros((20, 3)), np.zeros((20, 3)))
    with pytest.raises(InputError, match=r"has 20 rows, expected 24, .* as many as the test images"):
        loaders_of(photos, sampler="triplet", train_cache_nn_inds=file)


def test_more_workers_than_cores(photos, monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert loaders_of(photos, num_workers=8).query.num_workers == 3
    assert capsys.readouterr().out == "dataset.num_workers=8, but this process has 3 cores: 3 workers are used\n"


def test_no_batch_is_waited_for_longer_than_asked(photos, tmp_path, monkeypatch):
    waits, make = [], DataLoader.__init__

    def note(loader, *args, **options):
        make(loader, *args, **options)
        waits.append((loader.num_workers, loader.timeout))

    monkeypatch.setattr(DataLoader, "__init__", note)
    for workers, timeout in ((0, 0), (1, 30)):
        changes = {"num_workers": workers, "timeout_minutes": 0.5}
        loaders = loaders_of(photos, **changes, image_cache=tmp_path / str(workers))
        EmbeddedViews(loaders.train, 1, lambda views: torch.zeros(24, 1, 1, 1))
        next(iter(_local_loader(loaders.query, 9)))
        assert waits == [(workers, timeout)] * len(waits) and len(waits) == 6  # of the cache's maker, too
        waits.clear()


def test_neighbours_of_as_many_other_images(photos, tmp_path):
    """They are known by the table that an evaluation has written beside them."""
    lines = (photos / "train.txt").read_text().splitlines()
    files = {"train_file": str(tmp_path / "train.txt")}
    (tmp_path / "train.txt").write_text("\n".join(lines[:20]))  # as many as there are test images
    train, test = loaders_of(photos, **files).query_train.dataset, loaders_of(photos).query.dataset
    written = Ranking(np.zeros((20, 3), np.float32), (np.arange(20)[:, None] + [[1, 2, 3]]) % 20)
    for images, other in ((train, "test"), (test, "train")):
        save_evaluation(tmp_path, images, written, {})
        of_train, of_test = (
            lambda path: loaders_of(photos, **files, sampler="triplet", train_cache_nn_inds=path),
            lambda path: loaders_of(photos, **files).neighbours(path),
        )
        right, wrong = (of_train, of_test) if other == "test" else (of_test, of_train)
        with pytest.raises(
            InputError, match=r"nn_inds\.pkl is of other images: by per_query\.csv beside it row 0 is of"
        ):
            wrong(tmp_path / "nn_inds.pkl")
        right(tmp_path / "nn_inds.pkl")
    (tmp_path / "per_query.csv").write_bytes(b"damaged\xff")
    wrong(tmp_path / "nn_inds.pkl")
