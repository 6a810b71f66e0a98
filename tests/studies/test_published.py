"""The whole path of published networks, in the real architectures with random weights at a tiny size."""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic.images import metrics
from entropic.images.data import paper_table
from entropic.images.generate import generate, load_generated, load_manifest
from entropic.images.networks import edm, load_snapshot
from entropic.images.networks.published import published
from entropic.schedules import edm_sigmas, rescaled_sigmas, spectral_sigmas
from entropic.solvers import sample_ddim, sample_ddim_stochastic
from studies import claims
from studies import published as pretrained
from studies.parameters import Refused
from studies.published import rehearsal
from studies.published.rehearsal import EXTRACTOR as DINO
from studies.published.rehearsal import randomised
from studies.published.snapshots import pickled, snapshot

INCEPTION = "inception-v3-compat"
PIXELS = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 0,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "augment_dim": 9,
}


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory):
    """Snapshots, an autoencoder, feature networks and reference statistics, all random; and a cache of their own."""
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("world")
    pixels = randomised(edm.EDMPrecond(**PIXELS), 0)
    (folder / "pixels.pkl").write_bytes(pickled(snapshot(pixels, PIXELS, encoder=None)))
    rehearsal.make_files(folder)
    kept = {name: os.environ.get(name) for name in ("ENTROPIC_CACHE", "ENTROPIC_DINOV2", "ENTROPIC_VAE")}
    os.environ |= {
        "ENTROPIC_CACHE": str(folder / "cache"),
        "ENTROPIC_DINOV2": str(folder / "dino.pth"),
        "ENTROPIC_VAE": str(folder / "vae"),
    }
    yield folder
    for name, value in kept.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _experiment(world, **changes):
    return pretrained.Experiment(
        **{
            "name": "cifar10_edm",
            "tables": [3],
            "dataset": "CIFAR-10",
            "networks": [str(world / "pixels.pkl")],
            "curve_network": str(world / "pixels.pkl"),
            "curve_data": "own",
            "curve_levels": 8,
            "curve_samples": 6,
            "reference": str(world / "reference.pkl"),
            "extractors": [DINO],
            "solvers": ["deterministic DDIM", "stochastic DDIM"],
            "schedules": ["EDM", "rescaled entropic", "spectral rescaled entropic"],
            "nfe": [2],
            "images": 5,
            "runs": 2,
            "chunk": 3,
            "compiled": True,
            "keep_images": False,
            "store": "tiny",
            **changes,
        }
    )


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module", name="inception")
def _inception(world):
    """Inception's own architecture with random weights, let past the check of the published ones."""
    metrics.fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *words, **options: None)
        patch.setattr(torch, "load", lambda *words, **options: {})
        torch.manual_seed(5)
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(world))
    for tensor in network.parameters():
        if tensor.ndim == 4:
            torch.nn.init.kaiming_normal_(tensor)
    torch.save(network.state_dict(), world / "inception.pth")
    with pytest.MonkeyPatch.context() as patch:
        digest = hashlib.sha256((world / "inception.pth").read_bytes()).hexdigest()
        patch.setattr(metrics, "_INCEPTION_SHA256", digest)
        patch.setenv("ENTROPIC_INCEPTION", str(world / "inception.pth"))
        yield world / "inception.pth"


def test_from_snapshot_to_table(world, inception):
    # a distance of 2048 features takes 5 s: one row here, all combinations in the page of two processes below
    experiment = _experiment(
        world,
        extractors=[INCEPTION, DINO],
        solvers=["stochastic DDIM"],
        nfe=[3],
        schedules=["rescaled entropic"],
        runs=1,
    )
    pretrained.fill(experiment, progress=False)
    (row,) = pretrained.rows(experiment)
    cell = ("stochastic DDIM", 3, "rescaled entropic", 0)
    assert tuple(row[name] for name in ("solver", "nfe", "schedule", "run")) == cell
    assert row["images_per_second"] > 0

    # the row by hand: the network, its schedule, images, features, distance
    network = load_snapshot(world / "pixels.pkl", dtype=None)
    curve, _ = pretrained.error_curve(experiment)
    made = generate(network, rescaled_sigmas(3, curve), range(5), sampler=sample_ddim_stochastic, chunk=3)
    reference = metrics.load_reference(experiment.reference)
    for extractor, label in ((INCEPTION, "FID"), (DINO, "FD-DINOv2")):
        features = metrics.extract(made.images, extractor, batch=2)
        wanted = metrics.distance(features, reference[extractor], allow_singular=True)  # of the samples
        assert row[label] == pytest.approx(wanted, rel=1e-5)  # float32 features, another batch
        floor = metrics.expected_floor(reference[extractor], experiment.images)
        assert row[f"{label} floor"] == floor.mean

    # a second look makes nothing
    before = _files(world / "cache")
    pretrained.fill(experiment, progress=False)
    assert _files(world / "cache") == before
    (snapshot,) = experiment.snapshots
    manifest = load_manifest(experiment.folder / snapshot.label / "stochastic-DDIM-3-rescaled-entropic-0")
    assert manifest["sigmas"] == rescaled_sigmas(3, curve).tolist()
    assert manifest["decode"] == "entropic.images.data.to_uint8()"
    # images are kept for the curve, and for no row
    assert {path.parent.name for path in experiment.folder.rglob("images-*")} == {"images"}


def test_images_are_kept_where_that_is_asked_for(world):
    one = {"solvers": ["deterministic DDIM"], "schedules": ["EDM"], "runs": 1}
    experiment = _experiment(world, store="kept", keep_images=True, **one)
    pretrained.fill(experiment, progress=False)
    (snapshot,) = experiment.snapshots
    kept = load_generated(experiment.folder / snapshot.label / "deterministic-DDIM-2-EDM-0")
    again = metrics.feature_network(DINO)(kept.images)
    torch.testing.assert_close(kept.features[DINO], again, rtol=1e-4, atol=1e-4)  # float32, other batches


def test_curve_is_that_of_the_network_s_own_images(world):
    experiment = _experiment(world, store="curve", curve_samples=12)
    curve, amplitude = pretrained.error_curve(experiment)
    (images,) = experiment.folder.glob("curve-pixels-*/images")
    x = load_generated(images).images.double()
    assert len(x) == 12
    assert torch.allclose(curve.directions.sum(1), curve.eps2, rtol=1e-6)
    # at the highest noise D is nearly a constant: eps2 is the distance of the images from it
    network = load_snapshot(world / "pixels.pkl", dtype=None)
    generator = torch.Generator().manual_seed(0)
    sigma = curve.sigma[-1].item()
    noisy = x + sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    eps2 = (network(noisy, sigma) - x).square().flatten(1).sum(1)
    assert abs(curve.eps2[-1] - eps2.mean()) <= 5 * (eps2.std() / 12**0.5 + curve.stderr[-1])
    assert (amplitude > 0).all()
    again, _ = pretrained.error_curve(experiment)
    assert torch.equal(again.eps2, curve.eps2)
    with pytest.raises(ValueError, match=r"curve_samples = 6, but .* was made with 12"):
        pretrained.error_curve(_experiment(world, store="curve"))
    placed = pretrained.schedules(experiment, 4)
    assert torch.equal(placed["spectral rescaled entropic"], spectral_sigmas(4, curve, amplitude))
    assert list(placed) == experiment.schedules  # EDM's networks have no learned loss


def test_a_file_is_known_by_its_content_and_not_by_its_name(world, tmp_path):
    """Two files of one name, and a file that was replaced in its place, each have their own curve and images."""
    found, first = {}, tmp_path / "a" / "pixels.pkl"
    for number, path in enumerate((first, tmp_path / "b" / "pixels.pkl", first)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            pickled(snapshot(randomised(edm.EDMPrecond(**PIXELS), 10 + number), PIXELS, encoder=None))
        )
        names = {"networks": [str(path)], "curve_network": str(path)}
        names |= {"solvers": ["deterministic DDIM"], "schedules": ["rescaled entropic"], "runs": 1}
        experiment = _experiment(world, store="named", **names)
        pretrained.fill(experiment, progress=False)
        curve, _ = pretrained.error_curve(experiment)
        found[number] = curve.eps2.tolist(), [row["FD-DINOv2"] for row in pretrained.rows(experiment)]
    for part in range(2):
        assert len({tuple(one[part]) for one in found.values()}) == 3
    both = _experiment(
        world, store="named", runs=1, networks=[str(tmp_path / x / "pixels.pkl") for x in "ab"]
    )
    assert len({one.label for one in both.snapshots}) == 2


def test_images_of_a_curve_are_known_by_their_content(world):
    """Other images in the same .npz do not get the curve of the first."""
    given = {"curve_network": str(world / "latents.pkl"), "curve_data": str(world / "replaced.npz")}
    experiment = _experiment(world, store="replaced", **given)
    for seed in range(2):
        x = torch.rand(20, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).numpy() - 0.5
        np.savez(world / "replaced.npz", x=x, labels=np.arange(20) % 10)
        if seed == 0:
            pretrained.error_curve(experiment)
    with pytest.raises(ValueError, match="curve_data_sha256"):
        pretrained.error_curve(experiment)


def test_both_halves_read_parameters_alike():
    for text in ("false", "False", "FALSE"):
        assert pretrained.Experiment.named("ffhq", "recorded", [("keep_images", text)]).keep_images is False
    for name, text in (
        ("keep_images", "no"),
        ("images", "many"),
        ("nfe", "16"),
        ("networks", "!!python/tuple [a]"),
    ):
        with pytest.raises(Refused, match=name):
            pretrained.Experiment.named("ffhq", "recorded", [(name, text)])
    with pytest.raises(Refused, match="no experiment 'claims': take one of cifar10_edm"):
        pretrained.Experiment.named("claims")


def test_empty_parameters_keep_the_experiment_s_own():
    """The page's own values are those of the paper; what is given is taken, false and no text among it."""
    for name, own in pretrained.EXPERIMENTS.items():
        assert pretrained.Experiment.named(name) == own
    given = [("compiled", "false"), ("chunk", "7"), ("schedules", "[EDM]")]
    changed = pretrained.Experiment.named("ffhq", overrides=given)
    assert (changed.compiled, changed.chunk, changed.schedules) == (False, 7, ["EDM"])
    with pytest.raises(ValueError, match="images = 0"):
        pretrained.Experiment.named("ffhq", overrides=[("images", "0")])


def test_curve_from_given_states(world):
    x = torch.rand(20, 4, 16, 16, generator=torch.Generator().manual_seed(0)).numpy() - 0.5
    np.savez(world / "states.npz", x=x, labels=np.arange(20) % 10)
    given = {"curve_network": str(world / "latents.pkl"), "curve_data": str(world / "states.npz")}
    experiment = _experiment(world, store="given", curve_samples=20, **given)
    curve, _ = pretrained.error_curve(experiment)
    assert not list(experiment.folder.glob("*/images"))
    np.savez(world / "states.npz", x=x, labels=np.zeros(20, np.int64))
    other, _ = pretrained.error_curve(_experiment(world, store="others", curve_samples=20, **given))
    assert (curve.eps2 != other.eps2).any()  # the classes reach the network


def test_states_of_a_curve_come_by_the_same_check_as_all_others(world):
    path = world / "wrong.npz"
    given = {"curve_network": str(world / "latents.pkl"), "curve_data": str(path)}
    x = torch.rand(6, 4, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    for number, (arrays, words) in enumerate(
        (
            ({"x": x, "labels": np.arange(6)}, r"x runs from .* as pixels in \[0, 1\]"),
            ({"x": x - 0.5}, "lacks labels"),
            ({"x": x[:, :3] - 0.5, "labels": np.arange(6)}, "x has shape"),
            ({"x": x - 0.5, "labels": np.arange(6) + 5}, "labels range from 5 to 10"),
        )
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=rf"wrong\.npz.*{words}"):
            pretrained.error_curve(_experiment(world, store=f"wrong-{number}", **given))


@pytest.mark.once
def test_the_rehearsal_goes_from_download_to_page_in_two_processes(tmp_path, monkeypatch, capsys):
    """As `make imagenet512 GPUS=2` does it: torchrun fills the store, the notebook makes its page of it."""
    pytest.importorskip("diffusers")
    folder, before, make_page = tmp_path / "rehearsal", {}, rehearsal.make_page

    def watched(*words):
        before.update(_files(folder / "cache" / "rehearsal"))
        return make_page(*words)

    monkeypatch.setattr(rehearsal, "make_page", watched)
    assert rehearsal.main([str(folder), "--processes", "2"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "done: what `make imagenet512` does works here" in said.out
    assert "Downloading latents.pkl" in said.err and (folder / "downloads" / "latents.pkl.sha256").is_file()
    store, results = folder / "cache" / "rehearsal", folder / "book" / "_build" / "results" / "paper_tables"
    (cells,) = store.glob("latents-*")
    assert len({path.parent for path in before if path.is_relative_to(cells)}) == 2 * 2 * 2
    assert {path: stamp for path, stamp in _files(store).items() if path in before} == before
    columns = (results / "rows.csv").read_text().splitlines()
    assert len(columns) == 1 + 8 and "FD-DINOv2" in columns[0]
    place = columns[0].split(",").index("FD-DINOv2")
    distances = {float(line.split(",")[place]) for line in columns[1:]}
    # two solvers and two runs: two levels are the ends of the range in any schedule
    assert len(distances) == 4 and all(map(math.isfinite, distances))
    schedules = json.loads((results / "schedules.json").read_text())
    assert "learned loss" in (results / "schedules.csv").read_text().splitlines()[0]
    assert schedules["kind"] == "figure"
    assert {"gallery-0-edm.png", "gallery-0-rescaled.png"} <= {path.name for path in results.iterdir()}
    # the decoder is the one named, and images of two processes are those of one
    network = load_snapshot(folder / "downloads" / "latents.pkl", dtype=None)
    from entropic.images.networks.vae import load_vae

    vae = load_vae(folder / "downloads" / "vae")
    monkeypatch.setenv("ENTROPIC_DINOV2", str(folder / "downloads" / "dino.pth"))
    dino = metrics.feature_network(DINO)
    out = cells / "deterministic-DDIM-2-EDM-1"
    made = generate(
        network,
        edm_sigmas(2),
        range(5, 10),
        sampler=sample_ddim,
        chunk=2,
        decode=vae.decode,
        features={DINO: dino},
    )
    assert made.images.shape == (5, 3, 32, 32)
    assert torch.equal(load_generated(out).features[DINO], made.features[DINO])
    assert load_manifest(out)["decode"] == f"{vae!r}.decode()"


def test_a_rehearsal_says_what_failed(tmp_path, monkeypatch, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").touch()
    for words, named in (
        ([str(tmp_path / "used")], "holds files already"),
        (["--processes", "0"], "1 or more"),
    ):
        with pytest.raises(SystemExit):
            rehearsal.main(words)
        assert named in capsys.readouterr().err

    def damaged(folder):
        (folder / "vae").mkdir()
        for name in FILES:
            (folder / name).write_bytes(b"0")

    monkeypatch.setattr(rehearsal, "make_files", damaged)
    assert rehearsal.main([str(tmp_path / "new"), "--processes", "1"]) == 1
    said = capsys.readouterr().err
    assert "The rehearsal failed" in said and "latents.pkl" in said


FILES = (
    "latents.pkl",
    "reference.pkl",
    "dino.pth",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


# Beside the paper


def _found(table, value):
    """Rows of a run of ours that has `value(row of the paper, run)` for each of the paper's."""
    rows = {}
    for theirs in paper_table(table):
        for run in range(3):
            where = {name: theirs[name] for name in ("network", "solver", "schedule")}
            where |= {"tuned_for": theirs["snapshot_tuned_for"], "nfe": int(theirs["nfe"]), "run": run}
            row = rows.setdefault(json.dumps(where), dict(where))
            row[theirs["metric"]] = value(theirs, run)
    return list(rows.values())


def test_the_floor_stands_beside_ours(monkeypatch):
    captions = []
    monkeypatch.setattr(
        pretrained.page, "save_table", lambda rows, id, caption, **_: captions.append(caption)
    )
    found = [row | {"FID floor": "1.00812"} for row in _found(3, lambda row, run: 2.0)]  # text, as recorded
    experiment = pretrained.EXPERIMENTS["cifar10_edm"]
    pretrained.show_tables(experiment, found, "Ours.")
    assert "As many images of a perfect generator would have FID 1.01." in captions[0]
    captions.clear()
    pretrained.show_tables(experiment, [], "Ours: not run here.")
    assert "perfect" not in captions[0]


@pytest.mark.parametrize("table", range(1, 7))
def test_without_rows_the_paper_stands_alone(table):
    beside = pretrained.beside_paper(table)
    assert [row["paper"] for row in beside] == [row["value"] for row in paper_table(table)]  # as printed
    assert {row["ours"] for row in beside} == {"not run here"}
    assert {row["difference"] for row in beside} == {""}


def test_noise_is_what_two_equal_spreads_allow():
    # three runs at v - 1, v, v + 1 have std 1; Student's 95 % quantile with 2 degrees of freedom is 4.30
    width = 4.30 * math.sqrt(1 + 1 / 3)
    for shift, word in ((0.99 * width, "yes"), (-0.99 * width, "yes"), (1.01 * width, "no")):
        found = _found(3, lambda row, run, shift=shift: float(row["value"]) + shift + run - 1)
        beside = pretrained.beside_paper(3, found)
        assert {row["within noise"] for row in beside} == {word}
        assert {row["difference"] for row in beside} == {f"{shift:+.3g}"}
    assert beside[0]["ours"].endswith("± 1")


def _claim(name, found=()):
    """The claim as it is recorded, with its verdict."""
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        patch.setattr(claims, "leave_json", lambda _, value: kept.extend(value))
        claims.record_claims([pretrained.claim(pretrained.EXPERIMENTS[name], found)])
    return kept[0]


def test_claims_count_rows():
    alone = _claim("imagenet512")
    assert (alone["verdict"], alone["cases"]) == ("not run here", {})
    # ImageNet-512: 2 networks, 2 snapshots, 2 solvers, 3 NFE, 2 metrics; table 2 repeats rows of 5 and 6
    assert "of 48 rows" in alone["paper"] and alone["paper"].endswith("FID 13.64 against 32.31")
    won = _claim("cifar10_edm", _found(3, lambda row, run: 1.0 + (row["schedule"] == "EDM") + 0.1 * run))
    assert (won["verdict"], won["won"]) == ("holds", 6)
    lost = _claim("cifar10_edm", _found(3, lambda row, run: 2.0 - (row["schedule"] == "EDM")))
    assert (lost["verdict"], lost["lost"]) == ("does not hold", 6)
    noise = _claim("cifar10_edm", _found(3, lambda row, run: 2.0 + (row["schedule"] == "EDM") * (run - 1)))
    assert (noise["verdict"], noise["undecided"]) == ("undecided", 6)


def test_notebooks_hold_the_paper_s_experiments():
    """Their defaults make every row that the paper's tables have: network, snapshot, solver, schedule, NFE, metric."""
    named = {one.name: one for one in published()}
    for name, tables in (
        ("cifar10_edm", [3]),
        ("ffhq", [1]),
        ("imagenet64", [4]),
        ("imagenet512", [2, 5, 6]),
    ):
        experiment = pretrained.Experiment.named(name)
        snapshots = [named[one.name] for one in experiment.snapshots]
        labels = {metrics.EXTRACTORS[one].label for one in experiment.extractors}
        for table in tables:
            for row in paper_table(table):
                assert row["dataset"] == experiment.dataset
                assert any(
                    one.network == row["network"] and row["snapshot_tuned_for"] in ("", one.tuned_for)
                    for one in snapshots
                )
                assert row["solver"] in experiment.solvers and row["schedule"] in experiment.schedules
                assert int(row["nfe"]) in experiment.nfe and row["metric"] in labels
        reference = named[experiment.reference]
        assert reference.dataset == experiment.dataset and not reference.network
        assert (experiment.images, experiment.runs) == (50_000, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"solvers": ["Heun"]}, "solvers holds 'Heun'; it may hold 'deterministic DDIM'"),
        ({"schedules": ["entropic"]}, "schedules holds 'entropic'"),
        ({"extractors": ["dinov2"]}, "extractors holds 'dinov2'"),
        ({"images": 1}, "images = 1"),
        ({"nfe": [0]}, "nfe = 0"),
        ({"runs": 0}, "runs = 0"),
        ({"keep_images": "false"}, "keep_images = 'false'"),
    ],
)
def test_bad_experiments_are_named(world, change, words):
    with pytest.raises(ValueError, match=words):
        _experiment(world, **change)


def test_bad_names_are_named(world, tmp_path):
    with pytest.raises(ValueError, match=r"name = 'EDM2-Q' is not published"):
        _ = _experiment(world, networks=["EDM2-Q"]).snapshots
    found = _experiment(world, dataset="ImageNet-512", networks=["EDM2-XS"]).snapshots
    assert [one.name for one in found] == [
        "edm2-img512-xs-2147483-0.135",
        "edm2-img512-xs-2147483-0.200",
    ]
    with pytest.raises(Refused, match="has no parameter 'imges'"):
        pretrained.Experiment.named("ffhq", overrides=[("imges", "3")])
    with pytest.raises(FileNotFoundError, match=r"python -m studies\.published"):
        pretrained.rows(_experiment(world, store="empty"))
