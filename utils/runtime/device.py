"""The device of a rank: which GPU, how many images it embeds at a time, and its errors in words."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.errors import DeviceError, InputError, ReportedError
from utils.runtime.ranks import local_rank
from utils.runtime.signals import raise_pending_signal

NO_GPU = re.compile("No CUDA GPUs|no NVIDIA driver")  # in torch's message on a machine without one


def has_gpu() -> bool:
    """Whether torch can use a GPU. InputError if there is one that it cannot use, for instance with an old driver."""
    if torch.cuda.is_available():
        return True
    try:
        torch.cuda.init()
    except AssertionError:  # a torch without CUDA
        pass
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not NO_GPU.search(reason):
            raise InputError(f"the GPU cannot be used ({reason}): mend that, or set cpu=True") from error
    return False


def own_gpu() -> torch.device:
    """The GPU of this rank; InputError if the machine has more ranks than GPUs."""
    if local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}, start as many ranks "
            "(torchrun --nproc_per_node)"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


# Images of 224 x 224 that are embedded at a time. On two CPU cores with 1 MiB of second-level cache each, 16 were as
# fast as 8, while 2, 4 and 64 took 21, 9 and 14 % longer. Not tuned on a GPU.
IMAGES_AT_ONCE = {"cpu": 8, "cuda": 1000, "mps": 64}
# in torch's messages
OUT_OF_MEMORY = re.compile("CUDA error: out of memory|MPS backend out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED")
DEVICE_ERROR = re.compile("CUDA error|cuDNN error|CUBLAS_STATUS")
LOADER_ERRORS = {  # what to do about torch's messages; "ancillary data" is of the process that receives the files
    "Too many open files|ancillary data": "this process has as many files open as it may have, and the loader needs "
    "more: lower dataset.num_workers (0 uses none), or raise the limit (ulimit -n)",
    "^DataLoader timed out": "no batch has come from the loader's workers for timeout_minutes ({message}): where "
    "photos are read so slowly raise it or lower {setting}, else look why workers hang, or set dataset.num_workers=0",
    "shared memory|unable to write to file </torch": "shared memory (/dev/shm) is too small for the loader: lower "
    "dataset.num_workers (0 uses none) or {setting}, or enlarge it (docker run --shm-size=8g)",
    "DataLoader worker .*(killed|exited)": "a worker of the loader was ended ({message}): where memory is short, "
    "lower dataset.num_workers or {setting}",
}


class MicroBatches:
    """Applies `embed` to images (B, 3, H, W) in micro-batches and concatenates the outputs.

    A micro-batch has so many `pixels`, or where they are None, as suit the device; they are halved whenever memory runs
    out, down to one image.
    """

    def __init__(self, embed: Callable[[Tensor], Sequence[Tensor]], device: torch.device, pixels: int | None = None):
        self.embed, self.pixels = embed, pixels or IMAGES_AT_ONCE[device.type] * 224**2

    def __call__(self, images: Tensor) -> list[Tensor]:
        parts: list[Sequence[Tensor]] = []
        start, batch_size = 0, max(1, self.pixels // images[0, 0].numel())
        while start < len(images):
            batch = images[start : start + batch_size]
            try:
                parts.append(self.embed(batch))
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                batch_size = len(batch) // 2
                self.pixels = batch_size * images[0, 0].numel()
                continue
            start += batch_size
        return [torch.cat(part) for part in zip(*parts, strict=True)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error of torch, or of a CUDA library below it, means that the GPU's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


@contextmanager
def device_errors_as_input_errors(setting: str) -> Iterator[None]:
    """Translate torch's errors: InputError naming `setting` if CUDA memory, shared memory or open files run out, or a
    worker of the loader dies or hangs; DeviceError if the GPU fails."""
    try:
        yield
    except ReportedError:
        raise
    except (RuntimeError, OSError) as error:
        message = str(error)
        line = message.partition("\n")[0]
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise InputError(f"CUDA is out of memory: lower {setting}, or free the device ({line})") from error
        if DEVICE_ERROR.search(message):
            raise DeviceError(
                f"the GPU has failed ({line}): look at nvidia-smi and the system's log; a training "
                "goes on from its last.pt with continue_run=True"
            ) from error
        for pattern, advice in LOADER_ERRORS.items():
            if re.search(pattern, message):
                raise_pending_signal()  # which may have ended a worker, too
                raise InputError(advice.format(message=message, setting=setting)) from error
        raise


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters."""
    return next(model.parameters()).device
