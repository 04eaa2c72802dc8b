"""Names of the rankings of candidates in tables, in files and on the page."""

FITTED = {"chamfer + cosine": False, "logit + cosine + chamfer": True}  # with weights chosen: whether with logits
FIXED = ("global", "logit", "chamfer", "weighted")  # the last by the user's weights
RANKINGS = (*FIXED[:3], *FITTED, FIXED[3])  # in the order of tables
TITLES = {name: f"{name} (crossfit)" if name in FITTED else name for name in RANKINGS}


def rank_column(name: str) -> str:
    """The column of `per_query.csv` with the ranks of a ranking: `rank_chamfer_cosine` for `chamfer + cosine`."""
    return f"rank_{name.replace(' + ', '_')}"
