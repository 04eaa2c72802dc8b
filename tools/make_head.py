"""A head of a pretrained backbone from a training: `python -m tools.make_head CHECKPOINT FILE --trained-on TEXT`.

The training is one of objective="chamfer" with a frozen backbone and a validation list.
"""

import argparse
from pathlib import Path

from rrt.heads import Head, write_head
from utils.errors import InputError
from utils.io.checkpoint import read_tensors, state_of, training_info_of
from utils.retrieval.fitted import FittedWeights


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the head of a training as a file of its own.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--trained-on", required=True, help="a sentence on photos and licences")
    options = parser.parse_args()
    content = read_tensors(options.checkpoint)
    training, state = training_info_of(content), state_of(content, options.checkpoint)
    if training.fusion is None or training.crop_size is None or training.model.get("num_local_features") is None:
        raise InputError(f"{options.checkpoint} has no weights of a ranking: train with dataset.val_file")
    tensors = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith("remap_local.")}
    fusion = FittedWeights.from_dict(training.fusion)
    write_head(options.file, Head(training.model["arch"], training.crop_size, tensors, fusion, options.trained_on))
    print(f"{options.file}: {options.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
