import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.reference import published_model
from utils.errors import InputError
from utils.retrieval.embedding import GLOBAL, LOCAL, embed
from utils.runtime.device import IMAGES_AT_ONCE, MicroBatches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", [GLOBAL, LOCAL])
def test_embeds_all_images(output, dtype, monkeypatch, device):
    monkeypatch.setitem(IMAGES_AT_ONCE, device.type, 1)  # of 224 x 224: 12 of 64 x 64
    model = published_model(9, arch="resnet18").to(device)
    images, labels = torch.randint(0, 256, (21, 3, 64, 64), dtype=torch.uint8), torch.arange(21) * 3
    loader = DataLoader(TensorDataset(images, labels, torch.arange(21)), batch_size=15)
    (found,), found_labels = embed(model, loader, [output], "query", dtype, None)
    embedder = model.embedder(dtype)
    expected = [embedder(part.to(device))[output] for batch in images.split(15) for part in batch.split(12)]
    assert found.dtype == expected[0].dtype
    assert found.device == (device if output == GLOBAL else torch.device("cpu"))
    tolerance = 0 if device.type == "cpu" else 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(found.cpu(), torch.cat(expected).cpu(), rtol=0, atol=tolerance)
    assert torch.equal(found_labels, labels)


class Flawed(torch.nn.Linear):
    """A network that answers infinite numbers for white images."""

    def embedder(self, dtype):
        def answers(images):
            values = images.flatten(1)[:, :4] + torch.where(images.amax(dim=(1, 2, 3)) == 255, torch.inf, 0.0)[:, None]
            return values, values[:, :, None, None]

        return answers


@pytest.mark.parametrize("output", [GLOBAL, LOCAL])
def test_nonfinite_output_names_the_photo(output):
    images = torch.zeros(7, 3, 8, 8)
    images[5] = 255
    data = TensorDataset(images, torch.arange(7), torch.arange(7))
    with pytest.raises(InputError, match=r"answers NaN or infinite numbers for photo number 5: set another precision"):
        embed(Flawed(1, 1), DataLoader(data, batch_size=3), [output], "query", torch.float32, None)
    data.paths = [f"{i}.JPG" for i in range(7)]
    with pytest.raises(InputError, match=r"for photo 5\.JPG: "):
        embed(Flawed(1, 1), DataLoader(data, batch_size=3), [output], "query", torch.float32, None)


def test_batches_close_their_files():
    numbers = torch.arange(120)
    data = TensorDataset(torch.zeros(len(numbers), 3, 8, 8), numbers, numbers)
    opened: list[int] = []

    class Watched(Flawed):
        def embedder(self, dtype):
            answers = super().embedder(dtype)

            def watching(images):
                opened.append(len(list(Path("/proc/self/fd").iterdir())))
                return answers(images)

            return watching

    loader = DataLoader(data, batch_size=1, num_workers=1)
    _, labels = embed(Watched(1, 1), loader, [GLOBAL], "query", torch.float32, None)
    assert torch.equal(labels, numbers)
    assert len(opened) == len(numbers) and max(opened) - opened[0] < 20


class Silent(Dataset):
    """Images that never come."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(60)


def test_hanging_workers_time_out():
    loader = DataLoader(Silent(), num_workers=1, timeout=0.3)
    with pytest.raises(InputError, match=r"no batch has come .* timeout_minutes .*0\.3 seconds.*num_workers=0"):
        embed(Flawed(1, 1), loader, [GLOBAL], "query", torch.float32, None)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")])
def test_micro_batches_shrink_when_out_of_memory(error, monkeypatch):
    monkeypatch.setitem(IMAGES_AT_ONCE, "cpu", 1)  # of 224 x 224: 12 of 64 x 64
    images, sizes = torch.rand(21, 3, 64, 64), []

    def embed_few(piece, most=5):
        sizes.append(len(piece))
        if len(piece) > most:
            raise error
        return piece.mean(dim=(2, 3)), piece[:, :, 0, 0]

    in_micro_batches = MicroBatches(embed_few, torch.device("cpu"))
    for batch in (images[:15], images):
        means, corners = in_micro_batches(batch)
        assert torch.equal(means, batch.mean(dim=(2, 3))) and torch.equal(corners, batch[:, :, 0, 0])
    assert sizes == [12, 6, 3, 3, 3, 3, 3] + [3] * 7
    with pytest.raises(type(error), match=str(error)):
        MicroBatches(lambda piece: embed_few(piece, most=0), torch.device("cpu"))(images)
    assert sizes[-4:] == [12, 6, 3, 1]
