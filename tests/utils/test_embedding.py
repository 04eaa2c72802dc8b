import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.reference import published_model
from utils.embedding import EMBEDDED, embed


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
