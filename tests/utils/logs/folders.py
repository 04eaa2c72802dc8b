"""Run folders written in the forms found in the wild."""

import json
from pathlib import Path

START = "2026-01-02T03:00:00.500000"
STOP = "2026-01-03T04:05:06.500000"


def write(folder: Path, **contents) -> Path:
    """A run folder with these files, by their stems: text as it is, anything else as JSON.

    A run that has printed nothing has an empty cout.txt.
    """
    folder.mkdir(parents=True)
    for stem, content in ({"cout": ""} | contents if "run" in contents else contents).items():
        name = "cout.txt" if stem == "cout" else f"{stem}.json"
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, sort_keys=True))
    return folder


def entry(status="COMPLETED", name="Rerank (train)", script="experiment_rerank.py", **times) -> dict:
    times = times or {"start_time": START, "stop_time": STOP, "heartbeat": STOP}
    return {"command": "main", "experiment": {"name": name, "mainfile": script}, "status": status, **times}


def config(seed=1, **changes) -> dict:
    return {
        "dataset": {"name": "sop_rerank"},
        "epochs": 2,
        "lr": 0.1,
        "seed": seed,
        "temp_dir": f"logs/{seed}",
    } | changes


def scalar(steps, values) -> dict:
    return {"steps": steps, "values": values, "timestamps": [STOP] * len(steps)}


def training_run(folder: Path, seed=1, best=81.0, status="COMPLETED", **changes) -> Path:
    """A run of two epochs in our form: the first is the best, the second 1 % below it."""
    return write(
        folder,
        run=entry(status),
        config=config(seed, **changes),
        info={"recall": {"1": best, "10": 92.0}, "peak_memory_gb": 1.5},
        metrics={
            "train.loss": scalar([0.0, 0.5, 1.0, 1.5], [4.0, 2.0, 1.0, 0.5]),
            "val.recall@1": scalar([0, 1, 2], [50.0, best, best - 1]),
            "val.recall@10": scalar([0, 1, 2], [60.0, 92.0, 93.0]),
        },
    )


def encoded(value: float) -> dict:
    return {"dtype": "float64", "py/object": "numpy.float64", "value": value}


PRINTED = """\
Extracting query features:   0%|        | 0/76 [00:00<?, ?it/s] 'l2': {1: 83.34, 10: 92.68}}
Training   [000]:   0%|                 | 0/596 [00:00<?, ?it/s]
Extracting query features:   1%|▏       | 1/76 [00:06<08:21,  6.69s/it]{'cosine': {1: 84.5, 10: 92.9},
 'l2': {1: 84.5, 10: 92.9}}
Training   [001]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: np.float64(85.65),
            10: np.float64(92.95)},
 'l2': {1: np.float64(85.65), 10: np.float64(92.95)}}
Training   [002]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: 85.61, 10: 92.97}, 'l2': {1: 85.61, 10: 92.97}}
Training   [003]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: 99.99, 10: 9
"""


def published_run(folder: Path) -> Path:
    """A run in the published form: encoded numbers, twice, and none of them in metrics.json."""
    recall = {
        "cosine": {"json://1": {"py/id": 0}, "json://10": {"py/id": 1}},
        "l2": {"json://1": encoded(85.65), "json://10": encoded(92.95)},
    }
    return write(
        folder,
        run=entry(name="Instance Learning", script="experiment_local.py") | {"result": encoded(85.65)},
        config=config(),
        info={"recall": recall},
        cout=PRINTED,
    )
