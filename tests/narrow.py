"""A ResNet of half a million weights under ResNet-18's name: tests of commands wait neither for it nor for its files.

`python -m tests.narrow SCRIPT ...` runs one of the project's commands with it.
"""

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torchvision.models.resnet import BasicBlock, conv3x3

from models.backbones.resnet import BLOCKS


class NarrowBlock(BasicBlock):
    """torchvision's, with a sixteenth of the channels between its convolutions."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *others):
        super().__init__(inplanes, planes, stride, *others)
        between = planes // 16
        self.conv1, self.bn1 = conv3x3(inplanes, between, stride), nn.BatchNorm2d(between)
        self.conv2 = conv3x3(between, planes)


@contextmanager
def narrow() -> Iterator[None]:
    """In the block 'resnet18' is the narrow network."""
    kept, BLOCKS["resnet18"] = BLOCKS["resnet18"], (NarrowBlock, [1, 1, 1, 1])
    try:
        yield
    finally:
        BLOCKS["resnet18"] = kept


if __name__ == "__main__":
    del sys.argv[0]
    with narrow():
        runpy.run_path(sys.argv[0], run_name="__main__")
