"""The model card of a network: what is known of it, and how it is loaded."""

from huggingface_hub import ModelCardData

from rrt.pretrained import WRITTEN, Pretrained
from utils.retrieval.fitted import FittedWeights
from utils.text import markdown_table

HUB_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"}  # names that the hub knows
UNKNOWN = {None, "unknown", "other"}
CARD = """\
---
{header}
---

{written}

# Image retrieval and reranking

{table}

```python
from rrt import Reranker

reranker = Reranker.from_pretrained("{source}")
matches = reranker.rank("query.jpg", ["a.jpg", "b.jpg"])  # best first
```
"""


def card_of(pretrained: Pretrained, ranking: str, source: str) -> str:
    """The card of a network that ranks by `ranking`, in words, and is loaded from `source`. The unknown is left out."""
    network, settings, crop_size, fusion, matcher_trained = pretrained
    licence, num_classes = network.backbone.licence, network.classifier.out_features
    is_known = licence not in UNKNOWN
    data = ModelCardData(library_name="reranking-transformers", tags=["image-retrieval", "reranking"])
    if is_known:
        data.license = licence if licence in HUB_LICENCES else "other"
        data.license_name = None if licence in HUB_LICENCES else licence
    sizes = network.settings
    rows = {
        "licence of the backbone's published weights": licence if is_known else None,
        "photos": f"{crop_size} x {crop_size} pixels",
        "descriptors": f"{sizes.num_global_features} numbers, and local maps of {sizes.num_local_features} channels",
        "trained on": f"photos of {num_classes:,} classes" if num_classes > 1 else None,
        "matcher": None if matcher_trained else "never trained",
        "ranks by": ranking,
        **({} if fusion is None else _measures(fusion)),
    }
    return CARD.format(
        header=data.to_yaml(),
        written=WRITTEN,
        table=markdown_table([{"network": name, settings["arch"]: value} for name, value in rows.items() if value]),
        source=source,
    )


def _measures(fusion: FittedWeights) -> dict[str, str]:
    """What is known of the weights, and the gains of cross-fitted ones."""
    gains = {"R@1": fusion.recall_gain, "mAP@R": fusion.precision_gain}
    measured = {
        f"{name} there": f"{points:+.2f} points over the global ranking, 95 % interval {low:+.2f} to {high:+.2f}"
        for name, (points, low, high) in gains.items()
    }
    photos = f"{fusion.fitted_on}, {fusion.num_queries:,} queries of {fusion.num_classes:,} classes"
    return {"weights fitted on": photos, **measured}
