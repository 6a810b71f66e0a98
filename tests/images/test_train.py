"""Training: the loss and its log in closed form, every image once an epoch, killed runs, several processes."""

import dataclasses
import hashlib
import json
import math
import signal
import socket
import time

import numpy as np
import pytest
import torch

from entropic.images import data, train
from entropic.images.networks.small import SmallUNet, load_network
from tests.conftest import run_python, start_process

TINY = train.Recipe(
    dataset="noise",
    network={
        "resolution": 8,
        "image_channels": 1,
        "num_classes": 3,
        "sigma_data": 0.5,
        "patch": 2,
        "channels": [16, 16],
        "blocks": 1,
        "attention": [1],
        "dropout": 0.1,
    },
    steps=60,
    batch=16,
    lr=2e-3,
    warmup=10,
    ema_images=200,
    log_every=7,
    save_every=5,
)


def noise_images(n=100, std=0.25, side=8):
    """Images of independent pixels, as near to N(0, std^2) as 8 bits allow."""
    x = std * torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1))
    images = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images, torch.arange(n) % 3


def digests(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.glob("weights*")
        if p.suffix != ".json"
    }


def train_tiny(folder, **changes):
    """With one thread, so that every process rounds alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train.train(
            dataclasses.replace(TINY, **changes), folder, *noise_images(), device="cpu", progress=False
        )
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train_tiny(folder)
    return folder


def test_killed_at_any_moment_a_run_ends_as_if_never_stopped(whole, tmp_path):
    """kill -9 at moments of the wall clock, between lines of the log, until a run is left alone."""
    folder, moments = tmp_path / "killed", np.random.default_rng(0)
    kills, begun = 0, 0
    while kills < 4:
        process = start_process(train_tiny, folder)
        while process.is_alive() and lines(folder) <= begun:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        kills, begun = kills + 1, lines(folder)
    assert kills >= 2
    assert not (folder / "weights.safetensors").exists() or lines(folder) == lines(whole)
    train_tiny(folder)
    assert digests(folder) == digests(whole)
    assert set(digests(whole)) == {"weights.safetensors", "weights.log.jsonl"}


def lines(folder):
    path = folder / "weights.log.jsonl"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else -1


def test_a_half_written_last_line_is_dropped(whole, tmp_path):
    for name in ("checkpoint.pt", "weights.log.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    with (tmp_path / "weights.log.jsonl").open("a") as file:
        file.write('{"step": 67, "count": [1')
    train.train(TINY, tmp_path, *noise_images(), device="cpu", progress=False)
    assert (tmp_path / "weights.log.jsonl").read_bytes() == (whole / "weights.log.jsonl").read_bytes()


def train_few_steps(folder):
    train_tiny(folder, steps=6, log_every=2, network=TINY.network | {"dropout": 0.0})


@pytest.mark.parametrize("launcher", ["by hand", pytest.param("torchrun", marks=pytest.mark.verify)])
def test_two_processes_share_the_batch(tmp_path, launcher):
    """Without dropout two gloo processes take the very steps of one: equal but for the order of float32 sums.

    Adam divides by the root of the squared gradient, so where a gradient is near 0 a rounding may turn a whole
    step: weights are bounded by the few steps' total length, losses to the precision that the log shows.
    """
    folders = tmp_path / "one", tmp_path / "two"
    train_few_steps(folders[0])
    if launcher == "torchrun":
        code = "import sys; from tests.images.test_train import train_few_steps as f; f(sys.argv[1])"
        (tmp_path / "run.py").write_text(code)
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "run.py"]
        shared = run_python(*words, folders[1], OMP_NUM_THREADS="1")
        assert shared.returncode == 0, shared.stdout + shared.stderr
    else:  # what torchrun tells its processes
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        processes = [
            start_process(train_few_steps, folders[1], RANK=str(rank), WORLD_SIZE="2", **place)
            for rank in range(2)
        ]
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    one, two = (
        [json.loads(line) for line in (f / "weights.log.jsonl").read_text().splitlines()[1:]] for f in folders
    )
    assert [line["count"] for line in one] == [line["count"] for line in two]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)


def test_every_image_once_an_epoch():
    images, _ = noise_images(96)
    steps = 2 * 96 // TINY.batch
    rows = torch.cat([train._draw(TINY, step, images, 0, 1)[0] for step in range(steps)])
    for epoch in rows.split(96):
        assert torch.equal(epoch.sort().values, torch.arange(96))
    assert not torch.equal(*rows.split(96))
    shares = torch.stack([train._draw(TINY, 3, images, rank, 2)[0] for rank in (0, 1)], 1).flatten()
    assert torch.equal(shares, train._draw(TINY, 3, images, 0, 1)[0])


def test_noise_levels_are_log_normal():
    """Mean and standard deviation of ln sigma within 4 standard errors over 3,200 draws."""
    images, _ = noise_images()
    log_sigma = torch.cat([train._draw(TINY, step, images, 0, 1)[1].log() for step in range(200)]).double()
    n = len(log_sigma)
    assert abs(log_sigma.mean() - TINY.p_mean) < 4 * TINY.p_std / math.sqrt(n)
    assert abs(log_sigma.std() - TINY.p_std) < 4 * TINY.p_std / math.sqrt(2 * n)


def test_loss_before_and_after_training_against_closed_forms(tmp_path):
    """Independent pixels N(0, c^2): an untrained network is D = c_skip x, the best denoiser is linear.

    lambda eps2 / D is (sigma^2 + sd^2)/(sigma sd)^2 times (1 - c_skip)^2 c^2 + c_skip^2 sigma^2 at the start,
    c^2 sigma^2 / (c^2 + sigma^2) at best.
    """
    c, sd = 0.25, TINY.network["sigma_data"]
    recipe = dataclasses.replace(
        TINY,
        steps=120,
        batch=64,
        lr=8e-3,
        log_every=1,
        save_every=120,
        network=TINY.network | {"dropout": 0.0, "channels": [16], "attention": []},
    )
    train.train(recipe, tmp_path, *noise_images(4000, c), device="cpu", progress=False)
    log = [json.loads(line) for line in (tmp_path / "weights.log.jsonl").read_text().splitlines()[1:]]

    def sums(records):
        return (
            np.sum([record[name] for record in records], 0)
            for name in ("count", "loss", "loss2", "log_sigma")
        )

    def expected(log_sigma, error):
        square = np.exp(2 * log_sigma)
        return 64 * (square + sd**2) / (square * sd**2) * error(square)

    def untrained(square):
        skip = sd**2 / (square + sd**2)
        return (1 - skip) ** 2 * c**2 + skip**2 * square

    def best(square):
        return c**2 * square / (c**2 + square)

    # Adam moves no weight by more than lr (step + 1) / warmup at first: the first step alone is the untrained one.
    count, loss, _, log_sigma = sums(log[:1])
    seen = count > 0
    # One draw's relative spread is sqrt(2 / 64) at least; 12 of 46 bins or so hold few draws: 5 standard errors.
    ratio = loss[seen] / count[seen] / expected(log_sigma[seen] / count[seen], untrained)
    assert (abs(ratio - 1) < 5 * math.sqrt(2 / 64 / 1) / np.sqrt(count[seen]) + 0.05).all()

    count, loss, _, log_sigma = sums(log[60:])
    busy = count > 180
    assert busy.sum() > 8
    ratio = loss[busy] / count[busy] / expected(log_sigma[busy] / count[busy], best)
    # Never better than the best denoiser, but for 5 standard errors; and most of the way to it.
    assert (ratio > 1 - 5 * math.sqrt(2 / 64) / np.sqrt(count[busy])).all()
    start = expected(log_sigma[busy] / count[busy], untrained) / expected(log_sigma[busy] / count[busy], best)
    worst = start > 1.5
    assert (ratio[worst] - 1 < 0.35 * (start[worst] - 1)).all()


def test_learning_rate_warms_up_and_decays_to_zero():
    rates = [train._learning_rate(TINY, step) for step in range(TINY.steps)]
    np.testing.assert_allclose(rates[: TINY.warmup], TINY.lr * np.arange(1, 11) / 10, rtol=1e-12)
    assert (np.diff(rates[TINY.warmup - 1 :]) <= 0).all()
    assert rates[-1] < 0.01 * TINY.lr


def test_average_forgets_half_in_its_half_life():
    """From weights 0, under constant weights 1, what is left after `ema_images` images is 1/2."""
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(average.weight), torch.nn.init.ones_(network.weight)
    average.requires_grad_(False)
    late = 10_000
    for step in range(late, late + TINY.ema_images // TINY.batch):
        train._average(average, network, TINY, step)
    share = TINY.ema_images // TINY.batch * TINY.batch / TINY.ema_images
    assert average.weight.item() == pytest.approx(1 - 0.5**share, abs=1e-6)


def test_a_folder_of_another_recipe_is_refused(whole, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match=r"lr = 0.002, not 0.5"):
        train.train(dataclasses.replace(TINY, lr=0.5), tmp_path, *noise_images(), device="cpu")


def test_a_loss_that_explodes_is_an_error(tmp_path):
    recipe = dataclasses.replace(TINY, lr=1e30, warmup=1)
    with pytest.raises(ValueError, match="by step 7; lower lr"):
        train.train(recipe, tmp_path, *noise_images(), device="cpu", progress=False)


def test_weights_are_refused_where_altered_or_truncated(whole, tmp_path):
    content, text = ((whole / f"weights.{suffix}").read_bytes() for suffix in ("safetensors", "json"))
    expected = json.loads(text)["sha256"]
    (tmp_path / "weights.json").write_bytes(text)
    for wrong in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        (tmp_path / "weights.safetensors").write_bytes(wrong)
        with pytest.raises(ValueError, match=f"{expected}, found {hashlib.sha256(wrong).hexdigest()}"):
            load_network(tmp_path / "weights.safetensors")
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="two files"):
        load_network(tmp_path / "weights.safetensors")
    network = load_network(whole / "weights.safetensors")
    assert not network.training and network.info["recipe"]["steps"] == TINY.steps


def test_network_checks_its_input():
    network = SmallUNet(**TINY.network)
    x, label = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    for wrong in (x[0], x.repeat(1, 3, 1, 1), x[..., :4]):
        with pytest.raises(ValueError, match="x has shape"):
            network(wrong, 1.0, label)
    with pytest.raises(ValueError, match="one int64 class"):
        network(x, 1.0, label.float())
    with pytest.raises(ValueError, match="multiple of 8"):
        SmallUNet(12, 1, 10, patch=2, channels=(16, 16, 16))


def test_embedded_network_denoises_better_than_any_linear_map():
    """The best linear denoiser of the data's covariance errs more at every noise level from 0.05 to 20."""
    network = load_network("fashion-mnist")
    images, labels = data.load_images("fashion-mnist", "test")[:2]
    x, noise = (
        data.to_pixels(images[::10]),
        torch.randn(100, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
    )
    variances = torch.linalg.eigvalsh(torch.cov(data.to_pixels(images).flatten(1).double().T)).clamp_min(0)
    for sigma in (0.05, 0.2, 1.0, 5.0, 20.0):
        with torch.no_grad():
            error = (network(x + sigma * noise, sigma, labels[::10]) - x).square().sum((1, 2, 3)).mean()
        assert error < 0.9 * (variances * sigma**2 / (variances + sigma**2)).sum()


def test_logs_of_one_law_agree_and_of_another_do_not(tmp_path):
    """Two logs drawn from one law: |log ratio| within 4 standard errors, z near 1; 5 % more loss is seen."""
    rng, bins, count = np.random.default_rng(0), len(train.SIGMA_EDGES) - 1, 400

    def log(name, factor):
        draws = factor * rng.gamma(8.0, size=(5, bins, count))
        lines = [{"sigma_edges": train.SIGMA_EDGES.tolist()}]
        for step, line in enumerate(draws, 1):
            sums = {"loss": line.sum(1).tolist(), "loss2": np.square(line).sum(1).tolist()}
            sums["log_sigma"] = [0.0] * bins
            lines.append({"step": step, "count": [count] * bins} | sums)
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
        return tmp_path / name

    same = train.compare_logs(log("a", 1.0), log("b", 1.0), share=1.0)
    # stderr: sqrt(2 / 8 / (5 * 400 * 46)), as a gamma's relative variance is 1 / 8.
    assert same.stderr == pytest.approx(math.sqrt(2 / 8 / (5 * count * bins)), rel=0.05)
    assert abs(same.log_ratio) < 4 * same.stderr
    assert abs(same.rms_z**2 - 1) < 4 * math.sqrt(2 / bins)
    other = train.compare_logs(log("c", 1.05), tmp_path / "a", share=1.0)
    assert abs(other.log_ratio - math.log(1.05)) < 4 * other.stderr
    assert other.log_ratio > 4 * other.stderr and other.rms_z > 2
