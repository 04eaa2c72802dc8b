import pytest
import torch

from benchmarks import reference
from models.matcher import Matcher
from tests.reference import META, assert_answer, normal, published_model


@pytest.mark.parametrize("variant", META["variants"])
def test_published(variant):
    model = published_model(50, **META["variants"][variant]).eval()
    d = model.matcher.seg_encoder.embedding_dim
    for tag, (h, w) in {"7x7": (7, 7), "5x3": (5, 3)}.items():
        src, tgt = normal(f"src.{tag}.{d}", 8, d, h, w), normal(f"tgt.{tag}.{d}", 8, d, h, w)
        with torch.no_grad():
            assert_answer(model.matcher(None, src, None, tgt), f"{variant}.match.{tag}")


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("shapes", [((1, 16, 1, 1), (1, 16, 1, 1)), ((3, 16, 2, 5), (3, 16, 4, 3))])
def test_equals_torch_encoder_with_gradients(normalize_before, activation, shapes):
    matcher = Matcher(16, 2, 3, 40, 0.0, activation, normalize_before)
    query, candidate = (torch.randn(shape, requires_grad=True) for shape in shapes)
    fast, plain = matcher(None, query, None, candidate), reference.score(matcher, query, candidate)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    inputs = (query, candidate, *matcher.parameters())
    for a, b in zip(torch.autograd.grad(fast.sum(), inputs), torch.autograd.grad(plain.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("shapes", [((1, 16, 1, 1), (1, 16, 1, 1)), ((3, 16, 2, 5), (3, 16, 4, 3))])
def test_equals_torch_encoder_without_gradients(normalize_before, activation, shapes):
    matcher = Matcher(16, 2, 3, 40, 0.0, activation, normalize_before).eval()
    query, candidate = (torch.randn(shape) for shape in shapes)
    torch.testing.assert_close(
        matcher(None, query, None, candidate), reference.score(matcher, query, candidate), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("shapes", [((1, 16, 1, 1), (1, 16, 1, 1)), ((3, 16, 2, 5), (3, 16, 4, 3))])
def test_attention_equals_that_of_torch(normalize_before, shapes):
    matcher = Matcher(16, 4, 3, 40, normalize_before=normalize_before).eval()
    query, candidate = map(torch.randn, shapes)
    found = matcher.attention(matcher.encode_queries(query), matcher.encode_candidates(candidate))
    tokens, expected = reference.pair_tokens(matcher, query, candidate), []
    for layer in matcher.encoder.layers:
        x = layer.norm1(tokens) if normalize_before else tokens
        expected.append(layer.self_attn(x, x, x, need_weights=True, average_attn_weights=False)[1])
        tokens = reference.encoder_layer(layer, tokens)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(found.shape[:-1]))


def test_dropout_acts_in_training_only():
    matcher = Matcher(16, 2, 2, 32, dropout=0.5)
    maps = torch.randn(4, 16, 2, 2)
    assert not torch.equal(matcher(None, maps, None, maps), matcher(None, maps, None, maps))
    matcher.eval()
    torch.testing.assert_close(
        matcher(None, maps, None, maps), reference.score(matcher, maps, maps), rtol=1e-5, atol=1e-5
    )


def test_order_of_a_pair_matters():
    matcher, (a, b) = Matcher(16, 2, 2, 32), torch.randn(2, 1, 16, 2, 2)
    assert matcher(None, a, None, b).item() != pytest.approx(matcher(None, b, None, a).item(), abs=1e-6)


@torch.no_grad()
def test_half_precision_products_with_tokens_in_float32():
    torch.manual_seed(0)
    exact = Matcher(32, 4, 3, 64).eval()
    half = exact.computing_in(torch.bfloat16)
    layer = half.encoder.layers[0]
    products = (
        layer.self_attn.in_proj_weight,
        layer.self_attn.out_proj.weight,
        layer.linear1.bias,
        layer.linear2.weight,
    )
    others = (layer.norm1.weight, half.seg_encoder.weight, half.classifier.weight)
    assert {tensor.dtype for tensor in products} == {torch.bfloat16}
    assert {tensor.dtype for tensor in others} == {tensor.dtype for tensor in exact.parameters()} == {torch.float32}
    maps = torch.randn(2, 50, 32, 3, 3).bfloat16()
    assert half.encode_queries(maps[0]).dtype == torch.float32
    expected = exact(None, maps[0].float(), None, maps[1].float())
    torch.testing.assert_close(half(None, maps[0], None, maps[1]), expected, atol=0.02, rtol=0)
