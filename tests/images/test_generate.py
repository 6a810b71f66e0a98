"""Images from seeds: the draws by hand, independence of batch, order and processes, folders that survive a kill."""

import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic import edm_sigmas
from entropic import solvers as samplers
from entropic.images.data import to_uint8
from entropic.images.generate import generate, load_generated
from entropic.images.networks.edm import EDMPrecond, VPPrecond
from entropic.images.networks.edm2 import Precond
from entropic.images.networks.small import SmallUNet
from tests.conftest import ROOT, start_process

SIGMAS = edm_sigmas(4, 0.01, 20.0)
CHURN = functools.partial(samplers.sample_heun, s_churn=2.0, s_noise=1.01)
SOLVERS = [
    samplers.sample_ddim,
    samplers.sample_ddim_stochastic,
    samplers.sample_heun,
    CHURN,
    samplers.sample_dpmpp_2m,
]


def _small(resolution=16):
    """A U-Net that nobody trained, whose zeroed layers are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallUNet(resolution, 1, 5, channels=(16,), blocks=1, patch=4).eval()
        for tensor in network.parameters():
            if not tensor.any():
                torch.nn.init.normal_(tensor, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture(name="network", scope="module")
def _network():
    return _small()


class _Gaussian(torch.nn.Module):
    """E[x_0 | x] of x_0 ~ N(label, s^2): every solver's output is known in closed form."""

    def __init__(self, num_classes=3, s=0.5, poison=None):
        super().__init__()
        self.shape, self.config, self.num_classes = (2, 4, 4), {"s": s}, num_classes
        self.s, self.poison = s, poison
        self.eval()

    def forward(self, x, sigma, label):
        weight = self.s**2 / (self.s**2 + sigma**2)
        mean = label[:, None, None, None].to(x.dtype) if self.num_classes else torch.zeros_like(x)
        denoised = mean + weight * (x - mean)
        if self.poison is not None:
            denoised[(x - self.poison).abs().flatten(1).amax(1) < 1e-12] = math.nan
        return denoised


def _draws(seeds, num_classes=3):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(2, 4, 4, generator=one, dtype=torch.float64) for one in generators])
    labels = torch.stack([torch.randint(num_classes, (), generator=one) for one in generators])
    return generators, noise, labels


def test_ddim_of_a_gaussian_is_its_closed_form():
    # Euler multiplies x - mean at every step by (weight + ratio (1 - weight)); a float32 is half an ulp away.
    seeds = [3, 1, 2**40]
    _, noise, labels = _draws(seeds)
    factor = 1.0
    for sigma, after in zip(SIGMAS.tolist(), SIGMAS.tolist()[1:], strict=False):
        weight = 0.25 / (0.25 + sigma**2)
        factor *= weight + (after / sigma) * (1 - weight)
    mean = labels[:, None, None, None]
    wanted = mean + factor * (noise * SIGMAS[0] - mean)
    made = generate(_Gaussian(), SIGMAS, seeds, output="float32")
    assert torch.equal(made.labels, labels)
    assert (made.images.double() - wanted).abs().max() <= 2**-23 * wanted.abs().max()


@pytest.mark.parametrize("sampler", SOLVERS)
def test_noise_comes_first_then_the_class_then_the_sampler(sampler):
    network = _Gaussian()
    generators, noise, labels = _draws(range(5))
    state = sampler(
        lambda x, sigma: network(x, sigma, labels), noise * SIGMAS[0], SIGMAS, generator=generators
    )
    made = generate(network, SIGMAS, range(5), sampler=sampler, output="float32")
    assert torch.equal(made.images, state.float())
    assert torch.equal(generate(network, SIGMAS, range(5), sampler=sampler).images, to_uint8(state))
    # given classes change the class alone
    again = generate(network, SIGMAS, range(5), sampler=sampler, labels=labels, output="float32")
    assert torch.equal(again.images, made.images)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_batch_order_and_subset_change_no_bit(network, sampler):
    make = functools.partial(generate, network, SIGMAS, sampler=sampler, output="float32")
    whole = make(range(70))
    assert whole.images.std() > 0.1  # the network does something
    for batch in (1, 7, 70):
        seeds = torch.randperm(70, generator=torch.Generator().manual_seed(batch))[: 20 if batch == 1 else 70]
        part = make(seeds, batch=batch)
        assert torch.equal(part.images, whole.images[seeds])
        assert torch.equal(part.labels, whole.labels[seeds])


def test_batch_changes_no_bit_where_the_place_in_a_call_does():
    # Attention over 3 x 3 positions: matrix products that group rows round differently from row to row.
    make = functools.partial(generate, _small(12), SIGMAS, output="float32", sampler=CHURN)
    whole, seeds = make(range(40)).images, [3, 1, 39]
    for batch in (1, 7, 40):
        assert torch.equal(make(range(40), batch=batch).images, whole)
    assert torch.equal(make(seeds, chunk=1).images, make(range(40), chunk=1).images[seeds])


def test_another_chunk_moves_only_rounding(network):
    # float32 rounds by 6e-8; some hundred operations on values near 1, amplified little, stay below 1e-4.
    make = functools.partial(generate, network, SIGMAS, range(9), output="float32")
    assert (make().images - make(chunk=1).images).abs().max() < 1e-4


def test_bytes_are_the_rounded_floats_but_for_ties(network):
    exact = generate(network, SIGMAS, range(20), output="float32").images
    rounded = generate(network, SIGMAS, range(20)).images
    assert rounded.dtype == torch.uint8
    levels = ((exact.double() + 1) * 127.5).clamp(0, 255)
    assert (rounded - levels).abs().max() <= 0.5 + 127.5 * 2**-24 * exact.abs().max()


def test_classes_are_uniform_and_absent_where_there_are_none():
    network = _Gaussian(num_classes=4)
    counts = generate(network, SIGMAS, range(2000), batch=500).labels.bincount(minlength=4)
    assert ((counts - 500).abs() < 5 * math.sqrt(2000 * 0.25 * 0.75)).all()
    none = generate(_Gaussian(num_classes=0), SIGMAS, range(3), output="float32")
    assert none.labels.tolist() == [0, 0, 0]
    one = generate(_Gaussian(num_classes=1), SIGMAS, range(3), output="float32")
    assert torch.equal(none.images, one.images)


def test_nan_names_its_seed():
    _, noise, _ = _draws([8])
    with pytest.raises(ValueError, match="seed 8: the network's answer at sigma = 20 is not finite"):
        generate(_Gaussian(poison=noise[0] * SIGMAS[0]), SIGMAS, range(5, 12))


def test_device_is_taken(network):
    here = generate(network, SIGMAS, range(3), output="float32")
    assert torch.equal(
        generate(network, SIGMAS, range(3), output="float32", device="cpu").images, here.images
    )


# Folders


def _digests(folder):
    # A kill within a write leaves a hidden file of a random name, which nobody reads.
    kept = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def _fill(network, folder, **others):
    return generate(
        network, SIGMAS, **{"seeds": range(21), "sampler": CHURN, "shard": 4, "out": folder, **others}
    )


def test_folder_holds_what_is_returned(network, tmp_path):
    made = _fill(network, tmp_path / "a", seeds=range(10, 31))
    without = generate(network, SIGMAS, range(10, 31), sampler=CHURN)
    for found in (made, load_generated(tmp_path / "a")):
        assert torch.equal(found.images, without.images)
        assert torch.equal(found.labels, without.labels)
        assert found.features == {}
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["seeds"] == list(range(10, 31))
    assert manifest["sampler"] == "entropic.solvers.sample_heun(s_churn=2.0, s_noise=1.01)"
    assert manifest["sigmas"] == SIGMAS.tolist()
    assert len(list((tmp_path / "a").iterdir())) == 1 + 2 * 6


def slow_fill(folder):
    """What the killed process runs: as `_fill`, but each call of the network takes a while."""
    _slow_down()
    _fill(_small(), folder)


def _slow_down():
    """Let each call of a network take a while: a hook would be another network by its content."""
    call = SmallUNet.forward

    def slow(*words):
        time.sleep(0.02)
        return call(*words)

    SmallUNet.forward = slow


def test_killed_run_goes_on_to_the_same_bytes(network, tmp_path):
    _fill(network, tmp_path / "whole")
    torn = tmp_path / "torn"
    process = start_process(slow_fill, torn)
    limit = time.monotonic() + 60
    while not (torn / "labels-000001.npy").is_file() and time.monotonic() < limit:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()  # SIGKILL: nothing is cleaned up
    process.join()
    before = _digests(torn)
    assert 2 <= sum(name.startswith("images") for name in before) < 6
    with pytest.raises(FileNotFoundError, match="of 6 shards"):
        load_generated(torn)
    (torn / ".0123.tmp").write_bytes(b"half")  # as a kill within a write leaves it
    stamps = {path.name: path.stat().st_mtime_ns for path in torn.glob("images-*.npy")}
    _fill(network, torn)
    assert _digests(torn) == _digests(tmp_path / "whole")
    assert all((torn / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_two_processes_fill_the_folder_of_one(network, tmp_path, monkeypatch):
    whole = _fill(network, tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, rows in (
        (1, [4, 5, 6, 7, 12, 13, 14, 15, 20]),
        (0, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]),
    ):
        monkeypatch.setenv("RANK", str(rank))
        share = _fill(network, tmp_path / "two", batch=3)
        assert torch.equal(share.images, whole.images[rows])
        assert torch.equal(share.labels, whole.labels[rows])
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "9")
    monkeypatch.setenv("RANK", "8")  # more processes than shards
    assert len(_fill(network, tmp_path / "two").images) == 0
    monkeypatch.setenv("RANK", "9")
    with pytest.raises(ValueError, match="RANK = 9 with WORLD_SIZE = 9"):
        _fill(network, tmp_path / "two")


def test_processes_at_once_fill_the_folder_of_one(network, tmp_path):
    _fill(network, tmp_path / "one")
    processes = [
        start_process(slow_fill, tmp_path / "two", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)
    ]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")


WORKER = """
import json, os, signal, sys
from pathlib import Path
import torch.distributed as dist
from entropic.images.generate import load_generated
from entropic.images.networks.small import SmallUNet
from tests.images.test_generate import fill_features, slow_network

folder, calls = Path(sys.argv[1]), int(sys.argv[2])  # rank 1's first life ends within its network call number `calls`
network = slow_network()
rank, life = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if calls and rank == 1 and life == 0:
    call = SmallUNet.forward
    def die(*words, left=[calls]):
        left[0] -= 1
        if left[0] == 0:
            kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
            (folder.parent / "before.json").write_text(json.dumps(kept))
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words)
    SmallUNet.forward = die
fill_features(network, folder)
dist.init_process_group("gloo")
dist.barrier()
if rank == 0:
    assert len(load_generated(folder).labels) == 21
dist.destroy_process_group()
"""


def slow_network():
    _slow_down()
    return _small()


def pixel_means(images):
    """Features that are known: mean and mean square of an image."""
    x = images.double().flatten(1)
    return torch.stack([x.mean(1), x.square().mean(1)], 1)


def fill_features(network, folder):
    return _fill(network, Path(folder), features={"means": pixel_means})


def _torchrun(folder, count, script, *words, restarts=0):
    root = ROOT
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"),
            *(f"--max-restarts={restarts}", str(script), str(folder), *words),
        ],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_lost_worker_costs_no_image(network, tmp_path):
    """Rank 1 of 2 is killed within a batch; torchrun starts both again, and nothing whole is made twice."""
    fill_features(network, tmp_path / "one")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run = _torchrun(tmp_path / "two", 2, script, "12", restarts=1)
    assert run.returncode == 0, run.stderr
    assert "SIGKILL" in run.stderr or "-9" in run.stderr
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    before = json.loads((tmp_path / "before.json").read_text())
    assert 0 < len(before) < 18
    assert all((tmp_path / "two" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


class _Lost(Exception):
    """A worker that ends."""


def test_a_lost_job_goes_on_with_fewer_workers(network, tmp_path, monkeypatch):
    """Each of 3 workers ends within its second shard; two others go on. All in this process, one after the other."""
    fill_features(network, tmp_path / "one")
    call, left = SmallUNet.forward, []

    def die(*words):
        left[0] -= 1
        if left[0] == 0:
            raise _Lost
        return call(*words)

    calls = 2 * (len(SIGMAS) - 1) - 1  # of Heun, for a shard
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(SmallUNet, "forward", die)
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        left[:] = [calls + 3]
        with pytest.raises(_Lost):
            fill_features(network, tmp_path / "two")
    monkeypatch.setattr(SmallUNet, "forward", call)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*.npy")}
    assert {path.name for path in kept} >= {f"images-{index:06d}.npy" for index in range(3)}
    assert len(kept) == 3 * 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        fill_features(network, tmp_path / "two")
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


@pytest.mark.verify
def test_a_killed_job_goes_on_with_fewer_workers(network, tmp_path):
    fill_features(network, tmp_path / "one")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    assert _torchrun(tmp_path / "two", 3, script, "12").returncode != 0
    before = json.loads((tmp_path / "before.json").read_text())
    assert 0 < len(before) < 18
    run = _torchrun(tmp_path / "two", 2, script, "0")
    assert run.returncode == 0, run.stderr
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    assert all((tmp_path / "two" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())


# Features and decoders


def test_features_need_no_images(network, tmp_path):
    images = _fill(network, tmp_path / "images").images
    wanted = pixel_means(images).float()
    for batch in (1, 5, 64):
        folder = tmp_path / str(batch)
        made = _fill(network, folder, batch=batch, output="none", features={"means": pixel_means})
        assert made.images is None
        assert torch.equal(made.features["means"], wanted)
        assert torch.equal(load_generated(folder).features["means"], wanted)
        assert not list(folder.glob("images*"))
    here = generate(
        network, SIGMAS, range(21), sampler=CHURN, output="float32", features={"means": pixel_means}
    )
    assert torch.equal(here.features["means"], wanted)
    assert here.images.dtype == torch.float32


def negative(state):
    """A decoder that is known: three colours, twice the size, light and dark exchanged."""
    return to_uint8(-state.repeat_interleave(2, -1).repeat_interleave(2, -2).expand(-1, 3, -1, -1))


def test_decoder_makes_the_images_and_what_features_see(network, tmp_path):
    states = _fill(network, tmp_path / "a", output="float32").images
    made = _fill(network, tmp_path / "b", decode=negative, features={"means": pixel_means})
    # states are kept in float32, decoded in float64: they may truncate to neighbouring values
    assert (made.images.int() - negative(states).int()).abs().max() <= 1
    assert made.images.shape == (21, 3, 32, 32)
    assert torch.equal(made.features["means"], pixel_means(made.images).float())


class _Named(torch.nn.Module):
    def __repr__(self):
        return "named(sha256=1)"

    def forward(self, images):
        return pixel_means(images)

    def decode(self, state):
        return to_uint8(state)


def test_what_has_no_name_is_refused_with_a_folder(network, tmp_path):
    named = _Named()
    _fill(network, tmp_path / "a", features={"f": named}, decode=named.decode)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["features"] == {"f": "named(sha256=1)()"}
    assert manifest["decode"] == "named(sha256=1).decode()"
    nameless = (_locked(), functools.partial(pixel_means, key=_locked()), _Locked().features)
    for function in nameless:
        with pytest.raises(ValueError, match=r"features\['f'\] = .* cannot be told from another"):
            _fill(network, tmp_path / "b", features={"f": function})
    assert not (tmp_path / "b").exists()


class _Locked:
    """Its content cannot be told: nobody can copy a lock."""

    def __init__(self):
        self.lock = threading.Lock()

    def features(self, images):
        return pixel_means(images)


def _locked():
    lock = threading.Lock()
    return lambda images, **options: pixel_means(images) if lock else None


def constant_features(images):
    return torch.full((len(images), 2), math.nan)


def single_row(images):
    return torch.zeros(1, 2)


@pytest.mark.parametrize("function", [constant_features, single_row])
def test_features_that_do_not_fit_are_refused(network, function):
    with pytest.raises(ValueError, match=r"features\['f'\] returned .* for 3 images"):
        generate(network, SIGMAS, range(3), features={"f": function})


def test_compiled_network_makes_the_same_images(network):
    compiled = _small()
    calls = []

    def count(graph, inputs):
        calls.append(graph)
        return graph.forward

    compiled.compile(backend=count, fullgraph=True)
    wanted = generate(network, SIGMAS, range(21), output="float32").images
    made = generate(compiled, SIGMAS, range(21), output="float32").images
    assert torch.equal(made, wanted)
    assert len(calls) == 1  # one shape, one graph, though sigma differs from call to call


def test_folder_of_other_arguments_is_refused_by_name(network, tmp_path):
    _fill(network, tmp_path)
    before = _digests(tmp_path)
    other = _small()
    other.conv_in.bias += 1e-6
    for name, change in {
        "network": {"network": other},
        "sigmas": {"sigmas": edm_sigmas(5, 0.01, 20.0)},
        "sampler": {"sampler": functools.partial(samplers.sample_heun, s_churn=1.0)},
        "output": {"output": "float32"},
        "decode": {"decode": negative},
        "features": {"features": {"means": pixel_means}},
        "chunk": {"chunk": 8},
        "shard": {"shard": 5},
        "seeds": {"seeds": range(22)},
        "labels": {"labels": torch.zeros(21, dtype=torch.int64)},
    }.items():
        arguments = {"network": network, "sigmas": SIGMAS, "seeds": range(21), "sampler": CHURN, "shard": 4}
        with pytest.raises(ValueError, match=f"^{name} = .*was made with"):
            generate(**{**arguments, **change}, out=tmp_path)
    _fill(network, tmp_path, batch=2, seeds=np.arange(21))  # these are the same
    assert _digests(tmp_path) == before


def test_files_that_do_not_fit_are_refused(network, tmp_path):
    _fill(network, tmp_path)
    path = tmp_path / "images-000002.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"images-000002.npy cannot be read"):
        load_generated(tmp_path)
    np.save(path, np.zeros((4, 1, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"images-000002.npy holds float32"):
        _fill(network, tmp_path)
    path.unlink()
    _fill(network, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": []}, "seeds = \\[\\]"),
        ({"seeds": [1, -2]}, "seeds = -2"),
        ({"seeds": [2**63]}, "below 2\\*\\*63"),
        ({"sigmas": [1.0, 0.5]}, "append 0"),
        ({"batch": 0}, "batch = 0"),
        ({"chunk": 0}, "chunk = 0"),
        ({"output": "uint16"}, "output = 'uint16'"),
        ({"output": "none"}, "'none' with features"),
        ({"labels": [0, 1]}, "one int64 class for each of 3 rows"),
        ({"labels": [0, 1, 5]}, "from 0 to 5; there are 5 classes"),
        ({"sampler": functools.partial(print, threading.Lock()), "out": "nowhere"}, "cannot be told from"),
    ],
)
def test_bad_arguments_are_named(network, change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        generate(**{"network": network, "sigmas": SIGMAS, "seeds": range(3), **change})
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"network\.eval"):
        generate(_small().train(), SIGMAS, range(2))


def test_progress_counts_images(network, tmp_path, capsys):
    _fill(network, tmp_path, progress=True)
    assert "21/21" in capsys.readouterr().err
    _fill(network, tmp_path)
    assert capsys.readouterr().err == ""


# The official samplers


def _oracle(name):
    if "ENTROPIC_ORACLE" not in os.environ:
        pytest.skip("no reference arrays: ENTROPIC_ORACLE does not name their folder")
    return dict(np.load(Path(os.environ["ENTROPIC_ORACLE"]) / f"{name}.npz"))


def _published(kind, name):
    meta = json.loads((Path(os.environ["ENTROPIC_ORACLE"]) / f"{name}-meta.json").read_text("utf-8"))
    state = {key: torch.from_numpy(value) for key, value in _oracle(f"{name}-state").items()}
    network = kind(**meta["init_kwargs"]).eval().requires_grad_(False)
    network = network.half() if any(one.dtype == torch.float16 for one in state.values()) else network
    network.load_state_dict(state, strict=True)
    return network


@pytest.mark.parametrize("sampled", ["det6", "det6_f64", pytest.param("det32", marks=pytest.mark.verify)])
def test_seeds_of_edm2_give_the_official_images(sampled):
    wanted = _oracle("tiny-sampler")
    network = _published(Precond, "tiny")
    steps = (int(wanted[f"{sampled}_nfe"]) + 1) // 2
    seeds = wanted["seeds"]
    made = generate(
        network,
        edm_sigmas(steps),
        seeds,
        sampler=samplers.sample_heun,
        chunk=len(seeds),
        output="float32",
    )
    assert made.labels.tolist() == wanted["class_idx"].tolist()
    scale = np.abs(wanted[sampled]).max()
    # Networks in float32, and states of up to 320 that det6 and det32 keep in float32, too: 2e-5 of the largest value.
    assert np.abs(made.images.numpy() - wanted[sampled]).max() < 2e-5 * scale


def test_seeds_of_edm_give_the_official_images():
    wanted = _oracle("edm-tiny-uncond")
    network = _published(EDMPrecond, "edm-tiny-uncond")
    seeds = wanted["seeds"]
    made = generate(
        network,
        edm_sigmas(18),
        seeds,
        sampler=samplers.sample_heun,
        chunk=len(seeds),
        output="float32",
        features={"bytes": lambda images: images.flatten(1)},
    )
    scale = np.abs(wanted["det18"]).max()
    assert np.abs(made.images.numpy() - wanted["det18"]).max() < 2e-5 * scale
    assert np.array_equal(made.features["bytes"].numpy(), wanted["images"].reshape(len(seeds), -1))


def test_seeds_of_edm2_give_the_official_images_with_churn():
    wanted, network = _oracle("tiny-sampler"), _published(Precond, "tiny")
    churn = {"s_churn": 40, "s_min": 0.05, "s_max": 50, "s_noise": 1.003}
    sampler = functools.partial(samplers.sample_heun, **churn)
    made = generate(network, edm_sigmas(8), wanted["seeds"], sampler=sampler, output="float32")
    assert np.abs(made.images.numpy() - wanted["churn8"]).max() < 2e-5 * np.abs(wanted["churn8"]).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_a_sampler_draws_in_the_type_that_the_network_names(dtype):
    network, states = _Gaussian(), []
    if dtype is not None:
        network.step_noise_dtype = dtype

    def sampler(denoiser, x, sigmas, generator):
        churn = {"s_churn": 2.0, "generator": generator, "callback": lambda step: states.append(step.x)}
        return samplers.sample_heun(denoiser, x, sigmas, **churn)

    generate(network, [1.0, 0.0], [5], sampler=sampler)
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    torch.randint(3, (), generator=generator)
    noise = torch.randn(2, 4, 4, generator=generator, dtype=dtype or torch.float64).double()
    raised = math.sqrt(2)  # of the level 1, by the largest share that churn takes
    assert states[0].dtype == torch.float64
    torch.testing.assert_close(states[0][0], start + math.sqrt(raised**2 - 1) * noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_noise_is_drawn_in_the_type_that_the_network_names(dtype):
    network = _Gaussian()
    if dtype is not None:
        network.noise_dtype = dtype
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 4, 4, generator=generator, dtype=dtype or torch.float64)
    label = torch.randint(3, (), generator=generator)
    made = generate(network, [1.0, 0.0], [5], output="float32", sampler=lambda denoiser, x, *_, **__: x)
    assert torch.equal(made.images[0], noise.float()) and made.labels.item() == label


def test_which_networks_name_which_type():
    assert SmallUNet.noise_dtype == torch.float64  # the results that the book records
    assert EDMPrecond.noise_dtype == VPPrecond.noise_dtype == Precond.noise_dtype == torch.float32
    assert EDMPrecond.step_noise_dtype == VPPrecond.step_noise_dtype == torch.float64
    assert Precond.step_noise_dtype == torch.float32
