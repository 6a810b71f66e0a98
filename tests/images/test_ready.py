"""The ready grids are those that `plan` places from the curve that is kept beside them."""

import json

import pytest
import torch

from entropic import edm_sigmas, plan, sample_heun
from entropic.images import ready
from entropic.images.networks import load_network
from entropic.images.networks.weights import fingerprint
from entropic.images.ready import READY, ready_curve, ready_sigmas
from entropic.saved import curve_sha256
from entropic.solvers import SOLVERS


@pytest.mark.parametrize("network", READY)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_ready_grid_is_the_plan_of_its_curve(network, solver):
    for n in (5, 12):
        wanted = plan(n, ready_curve(network), solver, None, 0.002, 80.0, free_end=True).sigmas
        # a search ends where its misfit no longer falls: the levels are good to the root of a rounding
        torch.testing.assert_close(ready_sigmas(network, n, solver), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("network", READY)
def test_provenance_is_that_of_the_network_of_this_package(network):
    kept = json.loads((ready._FOLDER / f"{network}.json").read_text("utf-8"))
    assert kept["provenance"]["weights"] == fingerprint(load_network(network))
    assert kept["provenance"]["curve_sha256"] == curve_sha256(ready_curve(network))


def test_a_ready_grid_is_nearer_to_the_converged_images_than_edm_s():
    """The same starts, Heun with 4 levels: the distance to the paths of 32 levels is less than half."""
    network = load_network("fashion-mnist")
    labels = torch.arange(10)
    x = 80 * torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    converged = sample_heun(network, x, edm_sigmas(32), labels=labels)
    ours, theirs = (
        (sample_heun(network, x, sigmas, labels=labels) - converged).square().mean()
        for sigmas in (ready_sigmas("fashion-mnist", 4, "Heun"), edm_sigmas(4))
    )
    assert ours < theirs / 4


def test_what_is_not_ready_is_named():
    with pytest.raises(ValueError, match=r"n = 7; fashion-mnist has grids of 4, 5, .*plan\(n, ready_curve"):
        ready_sigmas("fashion-mnist", 7, "heun")
    with pytest.raises(ValueError, match="network = 'imagenet'"):
        ready_sigmas("imagenet", 8, "heun")
    with pytest.raises(ValueError, match="solver = 'rk45'"):
        ready_sigmas("fashion-mnist", 8, "rk45")
