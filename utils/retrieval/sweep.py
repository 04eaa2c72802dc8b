"""Sweep weights over the saved scores of an evaluation: tables, the choice of each fold, and a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.ranking_names import FITTED, TITLES
from utils.retrieval.crossfit import fit_weights, grid, matches_of
from utils.retrieval.measures import relevant_of
from utils.retrieval.outcomes import outcomes
from utils.retrieval.ranking import Candidates
from utils.retrieval.results import Labels
from utils.text import text_table

DRAWN_CHAMFER_WEIGHTS = (0, 10, 50, 100)  # curves of the picture


def sweep_weights(candidates: Candidates, labels: Labels, picture: Path) -> None:
    """Print R@1 over the grid of weights, and the weights chosen for each fold and for new photos; draw R@1 over w.

    Tables and picture rank all scored candidates; the choice is also between numbers of candidates.
    """
    num_scored = candidates.cosines.shape[1]
    matches = matches_of(candidates, labels)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 1 if candidates.logits is None else 2, squeeze=False)[0]
    for panel, (name, with_logits) in zip(panels, FITTED.items(), strict=False):
        choices = [weights for weights in grid(num_scored, with_logits) if weights.num_candidates == num_scored]
        recalls = 100 * outcomes(candidates, matches, relevant_of(*labels), choices).hits.mean(axis=1)
        curves: dict[float, dict[float, float]] = {}
        for weights, recall in zip(choices[1:], recalls[1:], strict=True):
            curves.setdefault(weights.chamfer, {})[weights.cosine] = recall
        print(f"{TITLES[name]}: R@1 in %, the global ranking's is {recalls[0]:.2f}")
        print(
            text_table(
                [{"v": f"{v:g}", **{f"w = {w:g}": curve[w] for w in sorted(curve)}} for v, curve in curves.items()]
            )
        )
        try:
            fitted = fit_weights(candidates, labels, with_logits)
            for fold, weights in enumerate(fitted.by_fold, 1):
                print(f"fold {fold}: {weights}")
            print(f"for new photos: {fitted.overall}")
        except InputError as error:
            print(f"no choice of weights: {error}")
        for v, curve in curves.items():
            if not with_logits or v in DRAWN_CHAMFER_WEIGHTS:
                panel.plot(sorted(curve), [curve[w] for w in sorted(curve)], marker=".", label=f"v = {v:g}")
        panel.axhline(recalls[0], color="black", linestyle="--", label="global ranking")
        panel.set(
            title="logit + w * cosine + v * chamfer" if with_logits else "chamfer + w * cosine",
            xlabel="w",
            ylabel="R@1 [%]",
        )
        panel.set_xscale("symlog", linthresh=1 if with_logits else 0.25)
        ticks = sorted({weights.cosine for weights in choices[1:]})
        panel.set_xlim(0, ticks[-1])
        panel.set_xticks(ticks, [f"{w:g}" for w in ticks])
        panel.grid(alpha=0.3)
        panel.legend()
    with atomic_write(picture) as file:
        figure.savefig(file, format="png")
