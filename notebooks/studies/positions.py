"""Where the components of one-dimensional data lie."""

import torch


def positions(components, generator):
    """Standardised random positions (components,) float64, no two closer than 0.02."""
    while True:
        x = torch.randn(components, generator=generator, dtype=torch.float64)
        x = (x - x.mean()) / x.std(correction=0)
        if x.sort().values.diff().min() > 0.02:
            return x
