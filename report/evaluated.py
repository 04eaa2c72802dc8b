"""The files of an evaluation of reranking: its rankings and its photos, checked to be of the same run."""

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sop.ingredient import DATASET_RULES
from sop.splits import Split, class_map, read_split
from utils.errors import InputError
from utils.io.disk import md5
from utils.io.kept_fusion import is_made_from
from utils.logs.json_reader import nested, read_json
from utils.logs.runs import Run
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.measures import first_match_ranks
from utils.retrieval.ranking import Candidates
from utils.retrieval.rankings import Rankings, rank_candidates
from utils.retrieval.results import NAME, Labels, load_scores
from utils.settings import TEXT, check_settings

SCRIPT = "eval_rerank.py"


class Evaluated(NamedTuple):
    """An evaluation. `ranks` has for each ranking the queries' ranks (n,) of the first match: from 0, inf for none."""

    run: Run
    data: Path  # folder of the data set
    queries: Split
    gallery: Split
    candidates: Candidates
    labels: Labels
    rankings: Rankings
    ranks: dict[str, np.ndarray]
    files: list[Path]  # that were read


def read_evaluated(run: Run) -> Evaluated:
    """Read the files in the `temp_dir` of an evaluation, and its split files.

    InputError where one is missing, damaged, or of another run than the run folder.
    """
    config, dataset = run.config, nested(run.config, "dataset")
    if not isinstance(dataset, dict):
        raise InputError(f"{run.folder / 'config.json'} has no settings of the data set: run {SCRIPT} again")
    check_settings({"temp_dir": config.get("temp_dir")}, {"temp_dir": TEXT})
    for name in ("data_path", "test_file"):
        check_settings({name: dataset.get(name)}, {name: DATASET_RULES[name]}, "dataset.")
    folders = [*possible_paths(run, config["temp_dir"]), run.folder.parent]
    folder = next((folder for folder in folders if (folder / NAME).exists()), Path(config["temp_dir"]))
    candidates, labels = load_scores(folder)
    if md5(folder / NAME) != nested(read_json(run.folder / "info.json"), "scores_md5"):
        raise InputError(f"{folder / NAME} is not of the run in {run.folder}: run {SCRIPT} in a temp_dir of its own")
    data = first_existing(run, dataset["data_path"])
    names = dataset["test_file"] if isinstance(dataset["test_file"], list) else [dataset["test_file"]]
    splits = [read_split(data, name) for name in names]
    for name in names:
        check_md5(run, str(Path(dataset["data_path"]) / name), data / name)
    queries, gallery = splits[0], splits[-1]
    label_of = class_map(*splits)
    for split, classes in ((queries, labels.queries), (gallery, labels.gallery)):
        if [label_of[number] for number in split.classes] != classes.tolist():
            raise InputError(f"{folder / NAME} is of other photos than {data / names[0]} lists: run {SCRIPT} again")
    info = run.folder / "info.json"
    own = FittedWeights.of_file(nested(read_json(info), "fusion"), info)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            rankings = rank_candidates(candidates, labels, config.get("fusion"), own)
    except (TypeError, ValueError) as error:
        raise InputError(f"{run.folder / 'config.json'}: fusion={config.get('fusion')!r} is unknown") from error
    ranks = {name: first_match_ranks(ranking.positions, *labels[:2]) for name, ranking in rankings.rankings.items()}
    files = [run.folder / "config.json", info, folder / NAME, *(data / name for name in names)]
    return Evaluated(run, data, queries, gallery, candidates, labels, rankings, ranks, files)


def possible_paths(run: Run, path: str) -> list[Path]:
    """A path of a run's settings, relative to the folder of the run's command, and to the current folder."""
    base = nested(read_json(run.folder / "run.json"), "experiment", "base_dir")
    is_elsewhere = isinstance(base, str) and Path(base) != Path.cwd()
    return [working_path(Path(folder, path)) for folder in ([str(base), ""] if is_elsewhere else [""])]


def working_path(path: Path) -> Path:
    """A path relative to the current folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def first_existing(run: Run, path: str) -> Path:
    """The first of `possible_paths` that exists, else the last."""
    paths = possible_paths(run, path)
    return next((path for path in paths if path.exists()), paths[-1])


def check_md5(run: Run, name: str, path: Path) -> None:
    """InputError where a file's MD5 sum is not the one that the run has recorded for the setting `name`."""
    recorded = nested(read_json(run.folder / "info.json"), "md5", name)
    if isinstance(recorded, str) and path.exists() and not is_made_from(path, recorded):
        raise InputError(f"{path} is not the one that was evaluated: its MD5 sum differs; run {SCRIPT} again")
