"""Names of the rankings of candidates in tables, in files and on the page, and what former runs called them."""

from collections.abc import Iterable

FITTED = {"chamfer + cosine": False, "logit + cosine + chamfer": True}  # with weights chosen: whether with logits
# the last ones by the user's weights, the checkpoint's, and those in a cascade
FIXED = ("global", "logit", "chamfer", "weighted", "own", "cascade")
RANKINGS = (*FIXED[:3], *FITTED, *FIXED[3:])  # in the order of tables
TITLES = {name: f"{name} (crossfit)" if name in FITTED else name for name in RANKINGS}
FORMER_NAMES = {
    "published": "logit",
    "chamfer_alone": "chamfer",
    "chamfer": "chamfer + cosine",
    "fused": "logit + cosine + chamfer",
}


def current_names(names: Iterable[str]) -> list[str]:
    """Today's names of all rankings of one run; unknown names are kept.

    "chamfer" is a former name only beside another former name.
    """
    names = list(names)
    is_former = not (FORMER_NAMES.keys() - {"chamfer"}).isdisjoint(names)
    return [FORMER_NAMES.get(name, name) if is_former else name for name in names]


def rank_column(name: str) -> str:
    """The column of `per_query.csv` with the ranks of a ranking: `rank_chamfer_cosine` for `chamfer + cosine`."""
    return f"rank_{name.replace(' + ', '_')}"
