"""The works: problems that every schedule is put to, with the measure of what a schedule makes of them."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from entropic import (
    ErrorCurve,
    GaussianMixture,
    deterministic_law,
    edm_sigmas,
    gaussian_kl,
    gaussian_law,
    gaussian_w2,
    stochastic_law,
)
from entropic.bases import pca_basis
from entropic.estimate import estimate
from entropic.images import metrics
from entropic.images.data import load_images, to_pixels, to_uint8
from entropic.images.generate import generate, local_device
from entropic.images.networks import load_network
from entropic.solvers import HEUN
from studies import scales
from studies.leaderboard.names import KL_OF_DATA, KL_OF_GENERATED, PATH, PATH_RMS, SOLVERS, W2_OF_COMPONENTS
from studies.leaderboard.schedules import HIGH, LOW, MAPPED, RIVALS, SCHEDULES, TUNED_FOR, of_gaussians
from studies.positions import positions


class Work(NamedTuple):
    """One problem that every schedule is put to.

    name: that of the problem. group: that of all problems whose values are averaged with it.
    curve: its error curve, whose directions have `multiplicity` dimensions each.
    variances, counts: the data's own spectrum and how often each variance occurs, (K,) each.
    denoiser(x, sigma), data(count, generator) -> (count, ...): what the searches among the rivals call.
    measure(solver, sigmas, run): the distances of one run, a dictionary whose keys are `distances`. Where a schedule
    begins at another level than HIGH, the states there are those at HIGH, scaled: noise of the level's deviation.
    runs: the number of seeds. floor: the distances of real data, a dictionary with the same keys, or empty.
    schedules, solvers: names of those that are worth measuring here; () means all.
    maps: by the name of a distance in features, the map of states (count, ...) to features (count, F).
    """

    name: str
    group: str
    curve: ErrorCurve
    multiplicity: torch.Tensor | None
    variances: torch.Tensor
    counts: torch.Tensor
    denoiser: Callable
    data: Callable
    measure: Callable
    distances: tuple
    runs: int = 1
    floor: Mapping = MappingProxyType({})
    schedules: tuple = ()
    solvers: tuple = ()
    maps: Mapping = MappingProxyType({})

    def names(self):
        """The names of the schedules that are measured here."""
        return [
            name for name in self.schedules or SCHEDULES if name not in MAPPED or MAPPED[name] in self.maps
        ]

    def along_paths(self, denoiser, start, levels=128):
        """The same problem, measured by path errors alone: a work of its own, with the same curve and searches.

        denoiser(x, sigma), start(run) -> states at HIGH: what is walked, to convergence by `levels` levels of Heun.
        Stochastic solvers have no path to end at.
        """
        return self._replace(
            name=f"{self.name}, paths",
            measure=_path_errors(denoiser, start, levels),
            distances=(PATH, PATH_RMS),
            solvers=_DETERMINISTIC,
            schedules=_ON_PATHS,
            floor=MappingProxyType({}),
            maps=MappingProxyType({}),
        )


_DETERMINISTIC = tuple(name for name, solver in SOLVERS.items() if not solver.stochastic)
# Of the variants of ours, those that are made for distances of the data themselves.
# Of data whose mean is not 0 a curve does not tell where it is safe to start.
_NOT_CENTRED = tuple(name for name in SCHEDULES if not name.endswith("free start"))
_ON_PATHS = (*RIVALS, *(name for name in TUNED_FOR if name.endswith("W2")), "curve, W2", "measured")


def _path_errors(denoiser, start, levels):
    """measure(solver, sigmas, run) of the distance from where Heun with many levels ends, from the same states.

    The reference ends a tenth below LOW, so that its last step, to 0, is converged, too.
    """

    @functools.cache
    def converged(run):
        x = start(run)
        return x, HEUN.sample(denoiser, x, edm_sigmas(levels, LOW / 10, HIGH))

    def measure(solver, sigmas, run):
        x, end = converged(run)
        gap = (
            (SOLVERS[solver].sample(denoiser, x * _scale(sigmas), sigmas) - end)
            .flatten(1)
            .norm(dim=1)
            .double()
        )
        return {PATH: float(gap.mean()), PATH_RMS: float(gap.square().mean().sqrt())}

    return measure


def _scale(sigmas):
    """What states at HIGH are multiplied by to begin at sigmas[0]."""
    return float(sigmas[0]) / HIGH


def _levels(count=96):
    return torch.logspace(math.log10(LOW), math.log10(HIGH), count, dtype=torch.float64)


def gaussians():
    """Gaussian data, isotropic and with variances 1/k and 1/k^2: exact KL(generated || data) and squared W2."""
    k = torch.arange(1, 301, dtype=torch.float64)
    spectra = {"isotropic": torch.ones(1, dtype=torch.float64), "k^-1": 1 / k, "k^-2": k**-2}
    sigma = _levels()

    def work(name, variances):
        def measure(solver, sigmas, run):
            # The exact law at a level below HIGH would be a step that costs no call.
            start = "exact" if sigmas[0] >= HIGH else "normal"
            made = gaussian_law(variances, sigmas, SOLVERS[solver].name, start=start)
            return {
                KL_OF_GENERATED: float(gaussian_kl(made, variances)),
                "W2": float(gaussian_w2(variances, made)),
            }

        def draw(n, generator):
            return variances.sqrt() * torch.randn(n, len(variances), generator=generator, dtype=torch.float64)

        parts = variances * sigma[:, None].square() / (variances + sigma[:, None].square())
        curve = ErrorCurve(sigma, parts.sum(1), dim=len(variances), directions=parts)
        ones = torch.ones_like(variances)
        return Work(
            f"Gaussian, {name}",
            f"Gaussian, {name}",
            curve,
            ones,
            variances,
            ones,
            lambda x, sigma: x * (variances / (variances + sigma**2)),
            draw,
            measure,
            (KL_OF_GENERATED, "W2"),
            schedules=tuple(filter(of_gaussians, SCHEDULES)),
        )

    return [work(name, variances) for name, variances in spectra.items()]


def mixtures(widths=(0.05, 0.3), data_sets=20, components=15):
    """Random mixtures in one dimension with mean 0 and variance 1: exact KL(data || generated).

    A relative width of 0 means points; their law is then seen through one bin around each point.
    """
    works, sigma = [], _levels(128)
    for width in widths:
        generator = torch.Generator().manual_seed(0)
        for index in range(data_sets):
            x = positions(components, generator)[:, None]
            shrink = math.sqrt(1 - width**2)
            mixture = GaussianMixture.isotropic(shrink * x, width) if width else GaussianMixture.points(x)
            halfwidth = float(x[:, 0].sort().values.diff().min() / 2)

            def measure(solver, sigmas, run, mixture=mixture, width=width, halfwidth=halfwidth):
                how = SOLVERS[solver]
                if how.stochastic:
                    law = stochastic_law(mixture, sigmas)
                else:
                    law = deterministic_law(mixture, sigmas, how.name)
                return {KL_OF_DATA: float(law.kl(mixture) if width else law.kl_bins(mixture, halfwidth))}

            one = torch.ones(1, dtype=torch.float64)
            works.append(
                Work(
                    f"1-D, width {width:g}, {index}",
                    f"1-D mixtures, width {width:g}",
                    ErrorCurve(sigma, mixture.eps2(sigma), dim=1),
                    None,
                    one,
                    one,
                    mixture.denoiser,
                    lambda n, generator, mixture=mixture: mixture.sample(n, generator),
                    measure,
                    (KL_OF_DATA,),
                    # In one dimension the goals KL, W2 and alpha give the same schedule.
                    schedules=tuple(
                        name
                        for name in SCHEDULES
                        if name in RIVALS or {"KL", "measured"} & set(name.split(", "))
                    ),
                )
            )
    return works


def varying_scale(paths=1000, curve_levels=48, curve_samples=256, levels=512):
    """The eight models of `studies.scales`: the error along `paths` paths whose noises no search has seen."""

    def work(name, model):
        known = model.sample(4096, torch.Generator().manual_seed(2**21))
        found = estimate(
            model.denoiser, known, _levels(curve_levels), samples=curve_samples, common_noise=False
        )

        def start(run):
            generator = torch.Generator().manual_seed(run)
            x = model.sample(paths, generator)
            return x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype)

        return Work(
            f"varying scale, {name}",
            "varying scale",
            found.curve(),
            None,
            model.variances,
            torch.ones_like(model.variances),
            model.denoiser,
            model.sample,
            _path_errors(model.denoiser, start, levels),
            (PATH, PATH_RMS),
            schedules=_ON_PATHS,
            solvers=_DETERMINISTIC,
        )

    return [work(name, model) for name, model in scales.models().items()]


def _maps(spaces, shape, device="cpu"):
    """`Work.maps` of images with this shape, for keys of `metrics.EXTRACTORS`."""

    def map_of(space):
        network = functools.cache(lambda: metrics.feature_network(space, device=device))
        return lambda states: network()(to_uint8(states.reshape(-1, *shape)))

    return MappingProxyType({metrics.EXTRACTORS[space].label: map_of(space) for space in spaces})


def image_mixture(
    rank=None,
    samples=4000,
    curve_levels=48,
    curve_samples=256,
    reference=6000,
    source="full",
    paths=256,
):
    """Ten Gaussians fitted to Fashion-MNIST, one for each class; their denoiser and moments are exact.

    They have full covariances, or, with `rank`, that many directions each and one variance for all other directions,
    as on the page "Real images". Distances: Frechet's in pixels and in features of EfficientNet-Lite0; and the error
    along `paths` paths, a second work.
    """
    images = load_images("fashion-mnist", "train", source)
    x, labels = to_pixels(images.images, torch.float64).flatten(1), images.labels
    if rank is None:
        name, classes = "image mixture", [x[labels == k] for k in range(10)]
        means = torch.stack([part.mean(0) for part in classes])
        mixture = GaussianMixture.full(means, torch.stack([torch.cov(part.T) for part in classes]))
    else:
        name = f"image mixture, rank {rank}"
        mixture = GaussianMixture.fit_low_rank(x, labels, rank, shared_noise=True)
    shape = tuple(images.images.shape[1:])
    generator = torch.Generator().manual_seed(2**21)
    known = mixture.sample(reference, generator)
    covariance = mixture.covariance()
    values, vectors = torch.linalg.eigh(covariance)
    variances, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    sigma = _levels(curve_levels)
    found = estimate(
        mixture.denoiser,
        known,
        sigma,
        samples=curve_samples,
        common_noise=False,
        bases={"own": lambda error: (error @ vectors).square()},
    )
    exact = metrics.Statistics(mixture.mean(), covariance, None)
    real = metrics.statistics(to_uint8(known.reshape(-1, *shape)), "efficientnet-lite0", allow_singular=True)

    def distances(x):
        features = metrics.extract(to_uint8(x.reshape(-1, *shape)), "efficientnet-lite0")
        return {
            "pixel W2": metrics.distance(x, exact, allow_singular=True),
            "FD-EffNetLite0": metrics.distance(features, real, allow_singular=True),
        }

    def start(run, count=samples):
        generator = torch.Generator().manual_seed(run)
        x = mixture.sample(count, generator)
        return x + HIGH * torch.randn(x.shape, generator=generator, dtype=x.dtype), generator

    def measure(solver, sigmas, run):
        x, generator = start(run)
        x = x * _scale(sigmas)
        return distances(SOLVERS[solver].sample(mixture.denoiser, x, sigmas, generator=generator))

    work = Work(
        name,
        name,
        found.curve("own"),
        torch.ones(len(variances), dtype=torch.float64),
        variances[variances > 1e-12],
        torch.ones(int((variances > 1e-12).sum()), dtype=torch.float64),
        mixture.denoiser,
        lambda n, generator: mixture.sample(n, generator),
        measure,
        ("pixel W2", "FD-EffNetLite0"),
        runs=3,
        schedules=_NOT_CENTRED,
        floor=distances(mixture.sample(samples, torch.Generator().manual_seed(2**22))),
        maps=_maps(["efficientnet-lite0"], shape),
    )
    return [work, work.along_paths(mixture.denoiser, lambda run: start(run, paths)[0])]


def network(
    weights="fashion-mnist",
    images=1000,
    curve_levels=48,
    curve_samples=256,
    source="full",
    spaces=("fashion-classifier", "efficientnet-lite0"),
    paths=256,
):
    """The trained Fashion-MNIST network: Frechet distances in two feature spaces and in pixels.

    And the error along `paths` paths, a second work.
    """
    device = local_device()
    model = load_network(weights, device)
    train, test = (load_images("fashion-mnist", split, source) for split in ("train", "test"))
    if images > len(test.images):
        raise ValueError(
            f"images = {images}; the floor is measured on as many test images, of which there are {len(test.images)}"
        )
    x = to_pixels(train.images).to(device)
    basis = pca_basis(x[:10_000], 200)
    found = estimate(
        model,
        x[:10_000],
        _levels(curve_levels),
        labels=train.labels[:10_000],
        samples=curve_samples,
        common_noise=False,
        bases={"pca": basis},
    )
    reference = {name: metrics.statistics(train.images, name, device=device) for name in spaces}
    pixels = metrics.Statistics(*metrics.moments(to_pixels(train.images, torch.float64).flatten(1)), None)

    def distances(made):
        flat = to_pixels(made, torch.float64).flatten(1)
        found = {"pixel W2": metrics.distance(flat, pixels, allow_singular=True)}
        for name in spaces:
            features = metrics.extract(made, name, device=device)
            label = metrics.EXTRACTORS[name].label
            found[label] = metrics.distance(features, reference[name], allow_singular=True)
        return found

    def measure(solver, sigmas, run):
        seeds = range(10_000 + run * images, 10_000 + (run + 1) * images)
        made = generate(model, sigmas, seeds, sampler=SOLVERS[solver].sample, batch=256, chunk=16)
        return distances(made.images)

    label = train.labels[:256].to(device)
    shuffled = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(0))

    def denoiser(x, sigma):
        return model(x.float(), sigma, label[torch.arange(len(x)) % 256]).to(x.dtype)

    def start(run):
        generator = torch.Generator().manual_seed(2**22 + run)
        noise = torch.randn(paths, *x.shape[1:], generator=generator, dtype=torch.float64)
        return (HIGH * noise).to(device)

    work = Work(
        "Fashion-MNIST network",
        "Fashion-MNIST network",
        found.curve("pca"),
        basis.multiplicity,
        basis.variance / basis.multiplicity,
        basis.multiplicity,
        denoiser,
        lambda n, generator: x[torch.randperm(len(x), generator=generator)[:n]].double(),
        measure,
        ("pixel W2", *(metrics.EXTRACTORS[name].label for name in spaces)),
        runs=3,
        schedules=_NOT_CENTRED,
        floor=distances(test.images[shuffled[:images]]),
        maps=_maps(spaces, tuple(x.shape[1:]), device),
    )
    return [work, work.along_paths(denoiser, start)]


def galaxies(
    names=("hsc-32", "ztf-32"),
    own=1024,
    images=300,
    curve_levels=48,
    curve_samples=64,
    components=16,
    paths=200,
    levels=32,
):
    """Published networks of galaxies: distances from their own converged samples, and errors along paths.

    Their training images are not public: "data" are `own` samples of the network, by Heun with `levels` levels. The
    distance is Frechet's in the first principal components of these. No work is left where the package galaxygrad is
    missing.
    """
    try:
        from entropic.images.networks.galaxies import load_galaxies

        networks = {name: load_galaxies(name, local_device()) for name in names}
    except (ImportError, FileNotFoundError) as error:
        print(f"galaxies: not run here, {error}")
        return []
    return [
        work
        for name, model in networks.items()
        for work in _galaxies(
            name, model, own, images, curve_levels, curve_samples, components, paths, levels
        )
    ]


def _galaxies(name, model, own, images, curve_levels, curve_samples, components, paths, levels):
    def start(seed, count):
        noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))
        return HIGH * noise.to(local_device())

    def converged(x):
        return HEUN.sample(model, x, edm_sigmas(levels, LOW, HIGH))

    known = converged(start(2**21, own))
    flat = known.flatten(1).double().cpu()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    values, axes = values.flip(0).clamp_min(0), vectors.flip(1)[:, :components]
    found = estimate(model, known, _levels(curve_levels), samples=curve_samples, common_noise=False)
    with warnings.catch_warnings():
        # At high noise these networks err by more than the whole variance; the curve takes the variance there.
        warnings.simplefilter("ignore", UserWarning)
        curve = found.curve()

    def distances(x):
        parts = ((one.flatten(1).double().cpu() - flat.mean(0)) @ axes for one in (x, known))
        return {W2_OF_COMPONENTS: metrics.distance(*parts, allow_singular=True)}

    def measure(solver, sigmas, run):
        x = start(2**22 + run, images) * _scale(sigmas)
        generator = torch.Generator().manual_seed(2**23 + run)
        return distances(SOLVERS[solver].sample(model, x, sigmas, generator=generator))

    work = Work(
        f"galaxies, {name}",
        f"galaxies, {name}",
        curve,
        None,
        values[values > 1e-12],
        torch.ones(int((values > 1e-12).sum()), dtype=torch.float64),
        model,
        lambda n, generator: known[torch.randperm(own, generator=generator)[:n]],
        measure,
        (W2_OF_COMPONENTS,),
        runs=3,
        # The tables of "simple" and "Beta" begin at 157, above the highest level that these networks know.
        schedules=tuple(name for name in _NOT_CENTRED if name not in ("simple", "Beta")),
        floor=distances(converged(start(2**24, images))),
    )
    return [work, work.along_paths(model, lambda run: start(2**25 + run, paths))]


WORKS = {
    "gaussians": gaussians,
    "mixtures": mixtures,
    "mixtures-wider": functools.partial(mixtures, widths=(0.1, 0.5)),
    "points": functools.partial(mixtures, widths=(0.0,)),
    "varying-scale": varying_scale,
    "image-mixture": image_mixture,
    "image-mixture-low-rank": functools.partial(image_mixture, rank=16),
    "network": network,
    "galaxies": galaxies,
}
