import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.reference import META, published_model
from utils.embedding import EMBEDDED, embed


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("variant", META["variants"])
def test_descriptors_equal_the_networks(variant, arch):
    model = published_model(9, **META["variants"][variant] | {"arch": arch}).eval()
    images = torch.randint(0, 256, (3, 3, 96, 64), dtype=torch.uint8)
    with torch.no_grad():
        _, expected_global, expected_local = model(images)
    for pixels in (images, images.float() / 255):
        found_global, found_local = model.embedder()(pixels)
        torch.testing.assert_close(
            found_global, expected_global, rtol=0, atol=2e-5 * float(expected_global.abs().max())
        )
        torch.testing.assert_close(found_local, expected_local, rtol=0, atol=2e-5 * float(expected_local.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = published_model(9, arch="resnet18").eval()
    images = torch.rand(2, 3, 64, 64)
    exact, half = model.embedder()(images), model.embedder(dtype)(images)
    assert [part.dtype for part in half] == [torch.float32, dtype]
    for a, b in zip(exact, half, strict=True):
        assert (a - b.float()).abs().max() < 0.05 * a.abs().max()


def test_the_network_stays_as_it_was():
    model = published_model(9, arch="resnet18", set_bn_eval=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embedder = model.embedder(torch.bfloat16)
    embedder(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.bn1.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", [0, 1])
def test_all_images_of_a_loader(output, dtype, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "cpu", 1)  # of 224 x 224: 12 of 64 x 64
    model = published_model(9, arch="resnet18")
    images, labels = torch.randint(0, 256, (21, 3, 64, 64), dtype=torch.uint8), torch.arange(21) * 3
    loader = DataLoader(TensorDataset(images, labels, torch.arange(21)), batch_size=15)
    found, found_labels = embed(model, loader, output, "query", dtype, None)
    embedder = model.embedder(dtype)
    expected = [embedder(part)[output] for batch in images.split(15) for part in batch.split(12)]
    assert found.dtype == expected[0].dtype
    assert torch.equal(found, torch.cat(expected))
    assert torch.equal(found_labels, labels)
