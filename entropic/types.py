"""What arguments may be, for type checkers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ["Denoiser", "Generators", "Map", "Numbers"]

Numbers: TypeAlias = (
    float | Sequence[Any] | np.ndarray[Any, Any] | torch.Tensor
)  # what becomes a float64 tensor
Denoiser: TypeAlias = Callable[..., torch.Tensor]  # (x, sigma) or (x, sigma, labels)
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
Map: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # entry by entry
