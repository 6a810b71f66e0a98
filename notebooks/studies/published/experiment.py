"""What is to be computed for one data set of the paper: its networks, solvers, schedules, images and runs."""

import dataclasses
import functools
import os
from pathlib import Path

from entropic import _check
from entropic.files import cache, file_sha256
from entropic.images import metrics
from entropic.images.networks.published import fetch_published, find, published
from entropic.schedules import edm_sigmas, rescaled_sigmas, spectral_sigmas
from entropic.solvers import sample_ddim, sample_ddim_stochastic
from studies import pages
from studies.parameters import Refused

__all__ = ["EXPERIMENTS", "SCHEDULES", "SOLVERS", "Experiment", "Snapshot", "file_of"]

SOLVERS = {"deterministic DDIM": sample_ddim, "stochastic DDIM": sample_ddim_stochastic}
# As the paper's tables call them: what places n sigmas by the error curve and the data's amplitudes.
SCHEDULES = {
    "EDM": lambda n, curve, amplitude: edm_sigmas(n),
    "rescaled entropic": lambda n, curve, amplitude: rescaled_sigmas(n, curve),
    "spectral rescaled entropic": lambda n, curve, amplitude: spectral_sigmas(n, curve, amplitude),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One data set's part of the paper.

    name: its name in `EXPERIMENTS`, under which its results are recorded. tables: of the paper. dataset: as the paper's
    tables call it. networks: as they do ("EDM2-XS": every snapshot of it that is published for the data set), or names
    of snapshots (`images.networks.published`), or paths. curve_network: the smallest of the family, whose error curve
    all share, at `curve_levels` noise levels with `curve_samples` samples each. curve_data: whose images it is from,
    "cifar10", a .npz of x (N, C, H, W) as the network sees it and labels (N,), or "own": the network's (32 steps of
    Heun). reference: statistics of real images, a published name or a path. chunk: images a network call. Run r has the
    seeds r images, …, (r + 1) images - 1. compiled: torch.compile with CUDA graphs, on a GPU. keep_images: on the disk,
    beside their features. store: a folder, under the cache unless absolute.
    ValueError: a schedule, solver or extractor that is not there, numbers that are not, text for true or false.
    """

    name: str
    tables: list
    dataset: str
    networks: list
    curve_network: str
    curve_data: str
    reference: str
    extractors: list
    schedules: list
    chunk: int
    store: str
    curve_levels: int = 128
    curve_samples: int = 1024
    solvers: list = dataclasses.field(default_factory=lambda: list(SOLVERS))
    nfe: list = dataclasses.field(default_factory=lambda: [16, 32, 64])
    images: int = 50_000
    runs: int = 3
    compiled: bool = True
    keep_images: bool = False

    def __post_init__(self):
        for name, known in (
            ("solvers", SOLVERS),
            ("schedules", SCHEDULES),
            ("extractors", metrics.EXTRACTORS),
        ):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} holds {value!r}; it may hold {', '.join(map(repr, known))}")
        for name, least in (
            ("curve_levels", 4),
            ("curve_samples", 2),
            ("images", 2),
            ("runs", 1),
            ("chunk", 1),
        ):
            _check.integer(name, getattr(self, name), least)
        for calls in self.nfe:
            _check.integer("nfe", calls, 1)
        for name in ("compiled", "keep_images"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} = {getattr(self, name)!r}; pass True or False")

    @classmethod
    def of(cls, name, parameters):
        """The experiment of that name with the fields that a mapping holds, such as a notebook's `globals()`.

        Where experiments differ, an empty value ("", [], 0) keeps the experiment's own.
        ValueError: no such experiment, a value that does not fit.
        """
        if name not in EXPERIMENTS:
            raise Refused(f"there is no experiment {name!r}: take one of {', '.join(EXPERIMENTS)}")
        named = [one.name for one in dataclasses.fields(cls) if one.name in parameters]
        changed = {one: parameters[one] for one in named if parameters[one] or one not in _OWN}
        return dataclasses.replace(EXPERIMENTS[name], **changed)

    @classmethod
    def named(cls, name, profile="default", overrides=()):
        """The experiment of that name as the page of the paper's tables has it.

        overrides: pairs of a parameter's name and the text of its value, read as `notebooks/run.py` reads them.
        ValueError: no such experiment, profile or parameter, a value that does not fit.
        """
        return cls.of(name, pages.page("paper_tables").chosen(profile, overrides))

    @property
    def command(self):
        """What makes and records it."""
        return f"make {self.name.replace('_', '-')}"

    @property
    def snapshots(self):
        """All snapshots, a list of `Snapshot`."""
        return [one for network in self.networks for one in _snapshots(self.dataset, network)]

    @property
    def curve_snapshot(self):
        """The `Snapshot` whose error curve all networks share."""
        return _snapshots(self.dataset, self.curve_network)[0]

    @property
    def folder(self):
        """Where everything is kept."""
        return cache() / self.store

    def cells(self):
        """(solver, NFE, schedule, run) of all images of one network."""
        return [
            (solver, calls, schedule, run)
            for solver in self.solvers
            for calls in self.nfe
            for schedule in self.schedules
            for run in range(self.runs)
        ]


# What differs between the experiments.
_OWN = ("networks", "curve_network", "curve_data", "reference", "extractors", "schedules", "chunk", "store")
_BOTH = ["inception-v3-compat", "dinov2-vit-l-14-bicubic"]
EXPERIMENTS = {
    one.name: one
    for one in (
        Experiment(
            name="cifar10_edm",
            tables=[3],
            dataset="CIFAR-10",
            networks=["EDM-VP"],
            curve_network="EDM-VP",
            curve_data="cifar10",
            reference="cifar10-32x32",
            extractors=_BOTH[:1],
            schedules=list(SCHEDULES),
            chunk=256,
            store="runs/cifar10_edm",
        ),
        Experiment(
            name="ffhq",
            tables=[1],
            dataset="FFHQ-64",
            networks=["EDM-VP"],
            curve_network="EDM-VP",
            curve_data="own",
            reference="ffhq-64x64",
            extractors=_BOTH[:1],
            schedules=list(SCHEDULES),
            chunk=128,
            store="runs/ffhq",
        ),
        Experiment(
            name="imagenet64",
            tables=[4],
            dataset="ImageNet-64",
            networks=["EDM2-S", "EDM2-L"],
            curve_network="EDM2-S",
            curve_data="own",
            reference="img64",
            extractors=_BOTH,
            schedules=list(SCHEDULES),
            chunk=64,
            store="runs/imagenet64",
        ),
        Experiment(
            name="imagenet512",
            tables=[2, 5, 6],
            dataset="ImageNet-512",
            networks=["EDM2-XS", "EDM2-XXL"],
            curve_network="EDM2-XS",
            curve_data="own",
            reference="img512",
            extractors=_BOTH,
            schedules=list(SCHEDULES)[:2],  # the spectral one is of pixels
            chunk=64,
            store="runs/imagenet512",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One file of weights. name: a published one, or a path."""

    name: str

    @property
    def title(self):
        """What to call it on a page."""
        return Path(self.name).stem if _is_path(self.name) else self.name

    @property
    def label(self):
        """What to call it on the disk: with the beginning of its file's sha256, so that no other file has that name."""
        return f"{self.title}-{self.sha256[:12]}"

    @property
    def sha256(self):
        """Of its file."""
        path = file_of(self.name)
        about = path.stat()
        return _sha256(path.resolve(), about.st_size, about.st_mtime_ns, about.st_ino)

    @property
    def network(self):
        """Its network as the paper's tables name it; a path's own name."""
        return self.title if _is_path(self.name) else find(self.name).network

    @property
    def tuned_for(self):
        """The metric that its averaging was tuned for, as the paper's tables name it; "" where there is none."""
        return "" if _is_path(self.name) else find(self.name).tuned_for


def file_of(name):
    """The path of a published file, which is fetched where it is absent, or of one that is given by its path."""
    return Path(name) if _is_path(name) else fetch_published(name)


@functools.lru_cache(64)
def _sha256(path, size, changed, inode):
    return file_sha256(path)


def _snapshots(dataset, network):
    if _is_path(network):
        return [Snapshot(str(network))]
    named = [one.name for one in published() if (one.dataset, one.network) == (dataset, network)]
    return [Snapshot(name) for name in named or [find(network).name]]


def _is_path(name):
    return Path(name).suffix in {".pkl", ".npz"} or os.sep in str(name)
