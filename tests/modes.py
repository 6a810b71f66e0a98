"""What a caller may have set in torch before it calls this package; none of it may change a result."""

import contextlib

import torch


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
# Nothing that is computed on the device "meta" has a value.
ON_A_DEVICE = MODES | {"device": lambda: torch.device("meta")}
