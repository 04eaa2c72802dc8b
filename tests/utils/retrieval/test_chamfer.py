import pytest
import torch

from models.matcher import Matcher
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.pair_scoring import matcher_for, pair_scores, rerank


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matcher = Matcher(16, 2, 2, 32).eval()


def plain_chamfer(query, candidate):
    """Token by token, of maps (d, h, w)."""

    def tokens(local):
        return [token / token.norm() for token in local.double().flatten(1).T]

    def one_way(ours, theirs):
        return sum(max(float(a @ b) for b in theirs) for a in ours) / len(ours)

    query, candidate = tokens(query), tokens(candidate)
    return (one_way(query, candidate) + one_way(candidate, query)) / 2


@pytest.mark.parametrize("shapes", [((3, 2), (3, 2)), ((1, 1), (1, 1)), ((2, 3), (1, 4))])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_equals_loop_over_tokens(shapes, dtype, tolerance, device):
    queries, gallery = (torch.randn(5, 16, *shape).to(dtype) for shape in shapes)
    neighbours = torch.stack([torch.randperm(5)[:4] for _ in range(5)])
    (found,) = pair_scores(Model().to(device), queries, gallery, neighbours, [Chamfer()])
    expected = [[plain_chamfer(queries[i], gallery[j]) for j in row] for i, row in enumerate(neighbours)]
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.double), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_and_blank_feature_maps(dtype):
    maps, chamfer = torch.randn(3, 16, 2, 2).to(dtype), Chamfer()
    maps[2] = 0
    found = chamfer.score(chamfer.encode_queries(maps), chamfer.encode_candidates(maps))
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=0.01)


def test_logits_in_one_pass_with_chamfer():
    model, maps = Model(), torch.randn(9, 16, 2, 2)
    neighbours = torch.stack([torch.randperm(9)[:5] for _ in range(9)])
    _, logits = pair_scores(model, maps, maps, neighbours, [Chamfer(), matcher_for(model, torch.float32)])
    expected, positions = rerank(model, maps, maps, neighbours)
    order = logits.argsort(dim=1, descending=True, stable=True)
    assert (logits.gather(1, order).numpy() == expected).all()
    assert (neighbours.gather(1, order).numpy() == positions).all()
