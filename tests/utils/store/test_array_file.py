"""Rows that lie on a GPU where they fit, and what is made one ahead."""

import threading
from types import SimpleNamespace

import pytest
import torch

from utils.store.array_file import on_device_if_they_fit, one_ahead


@pytest.mark.parametrize(("size", "fits"), [(1500, True), (1501, False)])
def test_memory_that_torch_keeps_counts_as_free(monkeypatch, size, fits):
    free = {"mem_get_info": (1000, 9000), "memory_reserved": 5000, "memory_allocated": 3000}
    for name, answer in free.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    rows = SimpleNamespace(nbytes=size, to=lambda device: "there")
    assert (on_device_if_they_fit(rows, torch.device("cuda", 1)) == "there") == fits


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_is_made_while_the_one_before_is_in_use(count):
    made, threads = [], set()
    begun = [threading.Event() for _ in range(count)]

    def make(number):
        made.append(number)
        threads.add(threading.current_thread())
        begun[number].set()
        return number**2

    used = []
    for number, square in enumerate(one_ahead(make, range(count))):
        assert all(event.wait(10) for event in begun[number : number + 2])
        assert made == list(range(min(number + 2, count)))  # and none after it, whose buffer this one may be in
        used.append(square)
    assert used == [number**2 for number in range(count)]
    assert threading.main_thread() not in threads


def test_errors_come_where_the_item_does():
    made = one_ahead(lambda number: 1 // number, [1, 0])
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
