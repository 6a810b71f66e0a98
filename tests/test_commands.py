"""`entropic estimate`, `place` and `convert`, one after the other, as on a command line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from entropic import __main__ as cli
from entropic import edm_sigmas, plan
from entropic.adapters import to_flow
from entropic.estimate import estimate
from entropic.saved import load_curve, load_schedule
from tests.test_handover import STABLE_DIFFUSION, _diffusers, _pipelines, stable_diffusion  # noqa: F401

F64 = torch.float64
DENOISER = """
import torch

def own(x, sigma, labels=None):
    found = x * 0.25 / (0.25 + sigma**2)
    return found if labels is None else found + 0 * labels[:, None]

class Ranged:
    sigma_min, sigma_max = 0.05, 20.0
    def __call__(self, x, sigma):
        return own(x, sigma)

ranged = Ranged()
"""


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    assert code == 0
    return capsys.readouterr()


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
    """A folder with a denoiser of the user's and states for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(DENOISER)
    x = 0.5 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    np.save("x.npy", x.numpy())
    np.savez("both.npz", x=x.numpy(), labels=np.arange(100))
    return name, x


def test_from_a_network_to_a_grid_in_three_commands(capsys, folder):
    name, x = folder
    words = ["--levels", 24, "--samples", 50, "--out", "curve.npz"]
    said = run(capsys, "estimate", "--denoiser", f"{name}:own", "--data", "x.npy", *words).err
    assert "1,200 calls" in said and "entropic place" in said
    kept = load_curve("curve.npz")
    denoise = __import__(name).own
    levels = edm_sigmas(24)[:-1].flip(0)
    found = estimate(denoise, x, levels, samples=50, batch=32, common_noise=False).curve()
    assert torch.equal(kept.curve.eps2, found.eps2)
    assert kept.provenance["network"] == f"{name}:own" and kept.provenance["samples"] == 50

    printed = run(
        capsys, "place", "-n", 6, "--curve", "curve.npz", "--solver", "Euler", "--out", "grid.json"
    ).out
    sigmas = torch.tensor([float(line) for line in printed.split()], dtype=F64)
    assert torch.equal(sigmas, plan(6, found, "ddim").sigmas)
    assert torch.equal(load_schedule("grid.json")[0], sigmas)

    flow = run(capsys, "convert", "grid.json", "--format", "flow").out
    assert [float(one) for one in flow.split(", ")] == to_flow(sigmas).tolist()
    for style in ("comma", "comfy"):
        text = run(capsys, "convert", "grid.json", "--format", style).out
        assert [float(one) for one in text.split(", ")] == sigmas.tolist()
    assert (
        eval(run(capsys, "convert", "grid.json", "--format", "python").out.split("=")[1]) == sigmas.tolist()
    )
    again = run(capsys, "convert", "grid.json", "--format", "json").out
    Path("again.json").write_text(again)
    assert torch.equal(load_schedule("again.json")[0], sigmas)


def test_a_network_s_own_range_and_labels(capsys, folder):
    name, _ = folder
    run(
        capsys, "estimate", "--denoiser", f"{name}:ranged", "--data", "x.npy", "--levels", 8, "--out", "a.npz"
    )
    curve = load_curve("a.npz").curve
    assert curve.sigma[[0, -1]].tolist() == pytest.approx([0.05, 20.0])
    words = ["--levels", 8, "--sigma-max", 10, "--out", "b.npz"]
    run(capsys, "estimate", "--denoiser", f"{name}:own", "--data", "both.npz", *words)
    assert load_curve("b.npz").curve.sigma[[0, -1]].tolist() == pytest.approx([0.002, 10.0])


def test_a_log_costs_no_call(capsys, tmp_path):
    from entropic.images.networks import training_log

    run(capsys, "estimate", "--log", training_log("fashion-mnist"), "--out", tmp_path / "log.npz")
    assert len(load_curve(tmp_path / "log.npz").curve.sigma) > 20


def test_the_network_of_this_package(capsys, tmp_path):
    words = ["--levels", 4, "--samples", 2, "--out", tmp_path / "shipped.npz"]
    run(capsys, "estimate", "--network", "fashion-mnist", *words)
    assert load_curve(tmp_path / "shipped.npz").curve.dim == 784


PLACE = ["place", "-n", 3, "--solver", "heun"]


def test_a_grid_measured_on_a_network_of_ones_own(capsys, folder):
    """The command draws the pilots from its seed, in the data's type, and labels of rows of the data."""
    name, _ = folder
    words = [*PLACE, "--denoiser", f"{name}:ranged", "--calls", 2000, "--explain", "--out", "grid.json"]
    said = run(capsys, *words, "--data", "x.npy", "--pilots", 12, "--seed", 7)
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(7), dtype=F64)
    found = plan(3, __import__(name).ranged, "heun", x=20 * noise, calls=2000)
    assert [float(line) for line in said.out.split()] == found.sigmas.tolist()
    assert found.explain() in said.err and found.method == "measured"
    sigmas, told = load_schedule("grid.json")
    assert torch.equal(sigmas, found.sigmas)
    assert told["network"] == f"{name}:ranged" and told["data"] == "x.npy" and told["solver"] == "heun"
    assert (told["pilots"], told["seed"], told["calls"]) == (12, 7, found.calls)
    means = {one: found.errors[one].mean().item() for one in ("EDM", "measured")}
    assert told["mean_errors"] == means and means["measured"] < means["EDM"]

    plain = run(capsys, *words, "--shape", "3", "--pilots", 12).out
    kept = run(capsys, *words, "--shape", "3", "--pilots", 12, "--batch", 12, "--store", "walks").out
    assert kept == plain != said.out and len(list(Path("walks").iterdir())) > 4
    given = [*PLACE, "--denoiser", f"{name}:own", "--calls", 2000, "--data", "both.npz", "--pilots", 12]
    levels = run(capsys, *given, "--sigma-min", 0.1, "--sigma-max", 10).out.split()
    assert (float(levels[0]), float(levels[-2])) == (10.0, 0.1)
    levels = run(capsys, *given, "--sigma-min", 0.01, "--sigma-max", 10, "--free-end").out.split()
    assert float(levels[0]) == 10.0 and float(levels[-2]) > 0.01


def test_more_pilots_than_the_calls_allow_are_not_told_as_used(capsys, folder):
    name, _ = folder
    words = ["--denoiser", f"{name}:ranged", "--shape", "3", "--calls", 1500, "--out", "grid.json"]
    run(capsys, *PLACE, *words, "--pilots", 1000)
    told = load_schedule("grid.json")[1]
    assert 8 <= told["pilots"] < 20 and told["calls"] <= 1500
    run(capsys, *PLACE[:3], "--solver", "euler_ancestral", *words, "--alpha", 1, "--pilots", 1000)
    told = load_schedule("grid.json")[1]
    assert told["schedule"] == "recursion" and told["goal"] == "Weighted(alpha=1.0)" and told["calls"] <= 1500


def test_a_grid_measured_on_the_network_of_this_package(capsys, tmp_path):
    words = ["--network", "fashion-mnist", "--pilots", 8, "--calls", 1100, "--out", tmp_path / "g.json"]
    printed = run(capsys, *PLACE, *words).out
    told = load_schedule(tmp_path / "g.json")[1]
    assert len(printed.split()) == 4 and told["network"] == "fashion-mnist" and told["calls"] <= 1100
    assert told["mean_errors"]["measured"] <= told["mean_errors"]["EDM"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pass one of --network, --denoiser and --curve, not 0"),
        (["--network", "fashion-mnist", "--curve", "c.npz"], "not 2"),
        (["--curve", "c.npz", "--pilots", 9], "--pilots belongs to a network or denoiser"),
        (["--curve", "c.npz", "--store", "s"], "--store belongs to a network or denoiser"),
        (["--network", "fashion-mnist", "--data", "x.npy"], "--data belongs to --denoiser"),
        (["--network", "fashion-mnist", "--shape", "3"], "--shape belongs to --denoiser"),
        (["--denoiser", "json:loads"], "either --data FILE"),
        (["--denoiser", "json:loads", "--data", "x.npy", "--shape", "3"], "either --data FILE"),
        (["--denoiser", "json:loads", "--shape", "3,-1"], "shape = '3,-1'"),
        (["--denoiser", "json:nothing", "--shape", "3"], "MODULE:NAME"),
        (["--denoiser", "MINE:own", "--shape", "3", "--pilots", 3], "pass 8 pilots or more"),
        (["--denoiser", "MINE:own", "--shape", "3", "--calls", 9], "calls = 9"),
        (["--denoiser", "MINE:own", "--shape", "3", "--metric", "kl"], "goal = KL with a denoiser"),
        (["--denoiser", "MINE:own", "--shape", "3", "--metric", "kl", "--alpha", 1], "both given"),
        (["--denoiser", "MINE:own", "--shape", "3", "--device", "nonsense"], "cannot be had"),
        (["--denoiser", "MINE:own", "--shape", "3", "--seed", -1], "seed = -1"),
        (["--denoiser", "MINE:own", "--shape", "3", "--batch", 0], "batch = 0"),
        (["--denoiser", "MINE:own", "--shape", "3", "-n", 1], "n = 1"),
    ],
)
def test_what_no_grid_can_be_measured_on_is_named(capsys, folder, words, said):
    words = [str(word).replace("MINE", folder[0]) for word in words]
    assert said in refused(capsys, *PLACE, *words)
    assert "place needs --solver" in refused(capsys, "place", "-n", 3, "--network", "fashion-mnist")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_pipeline_and_its_prompts(capsys, tmp_path, monkeypatch, pipelines):
    own = pipelines.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, steps_offset=1)
    pipe = stable_diffusion(pipelines, own)

    def encode(prompt, *_, **__):
        seed = sum(map(ord, prompt))
        return torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(seed)), torch.zeros(1, 7, 16)

    monkeypatch.setattr(pipe, "encode_prompt", encode)
    monkeypatch.setattr(pipe, "check_inputs", lambda *_, **__: None)
    monkeypatch.setattr("entropic.images.pipelines.load_pipeline", lambda folder, device: pipe)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na house\n")
    words = ["--prompts", tmp_path / "prompts.txt", "--steps", 3, "--levels", 6, "--out", tmp_path / "sd.npz"]
    said = run(capsys, "estimate", "--pipeline", "a folder", "--guidance", 1.0, *words).err
    assert "3 samples took 9 calls" in said and "18 calls" in said
    curve = load_curve(tmp_path / "sd.npz")
    assert curve.curve.sigma[[0, -1]].tolist() == pytest.approx([0.0291675, 14.6146], rel=1e-4)
    assert curve.provenance["data"] == "3 samples of its own"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pass one of --denoiser, --network, --pipeline, --log, not 0"),
        (["--network", "fashion-mnist", "--log", "x"], "not 2"),
        (["--denoiser", "no_such_module:x", "--data", "x.npy"], "MODULE:NAME"),
        (["--denoiser", "json:nothing", "--data", "x.npy"], "MODULE:NAME"),
        (["--denoiser", "json:loads"], "--data FILE"),
        (["--network", "fashion-mnist", "--data", "x.npy"], "--data belongs to --denoiser"),
        (["--pipeline", "x"], "--prompts FILE"),
        (["--denoiser", "json:loads", "--data", "words.npz"], "it must hold x"),
        (["--denoiser", "json:loads", "--data", "broken.npy"], "no whole .npy"),
        (["--log", "missing.jsonl"], "missing.jsonl"),
        (["--denoiser", "./json.py:loads", "--data", "x.npy"], "neither folder nor .py"),
        (["--denoiser", ".json:loads", "--data", "x.npy"], "MODULE:NAME"),
        (["--denoiser", "json:__name__", "--data", "x.npy"], "a callable"),
        (["--denoiser", "json:loads", "--data", "scalar.npy"], "it must hold x (N, ...)"),
        (["--denoiser", "json:loads", "--data", "texts.npz"], "of numbers"),
        (["--denoiser", "json:loads", "--data", "broken.npz"], "no whole .npy"),
    ],
)
def test_what_cannot_be_estimated_is_named(capsys, folder, words, said):
    np.savez("words.npz", y=np.zeros(3))
    with open("broken.npy", "wb") as f:
        f.write(b"\x93NUMPY and no more")
    np.save("scalar.npy", 1.0)
    np.savez("texts.npz", x=np.zeros((2, 3)), labels=np.array(["a", "b"]))
    Path("broken.npz").write_bytes(b"PK\x03\x04 and no more")
    assert said in refused(capsys, "estimate", *words, "--out", "c.npz")
    assert "ends in .npz" in refused(capsys, "estimate", "--network", "fashion-mnist", "--out", "c.json")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--levels", 3], "levels = 3"),
        (["--samples", 1], "samples = 1"),
        (["--batch", 0], "batch = 0"),
        (["--seed", -1], "seed = -1"),
        (["--steps", 0], "steps = 0"),
        (["--sigma-min", 2, "--sigma-max", 1], "not below sigma_max"),
        (["--device", "nonsense"], "device = 'nonsense' cannot be had"),
        (["--out", "missing/c.npz"], "its folder does not exist"),
        (["--prompts", "empty.txt"], "empty.txt holds 0 prompts"),
        (["--prompts", "latin.txt"], "latin.txt is no text in UTF-8"),
    ],
)
def test_what_cannot_end_well_is_said_before_a_pipeline_is_loaded(capsys, folder, monkeypatch, words, said):
    def load(*_):
        raise AssertionError("the pipeline was loaded")

    monkeypatch.setattr("entropic.images.pipelines.load_pipeline", load)
    Path("prompts.txt").write_text("a cat\na dog\n")
    Path("empty.txt").write_text("\n\n")
    Path("latin.txt").write_bytes("une forêt\nun chien\n".encode("latin-1"))
    usual = ["--pipeline", "x", "--prompts", "prompts.txt", "--out", "c.npz"]
    assert said in refused(capsys, "estimate", *usual, *words)


def test_a_missing_extra_is_one_line(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    Path("prompts.txt").write_text("a cat\na dog\n")
    words = ["--pipeline", "x", "--prompts", "prompts.txt", "--out", "c.npz"]
    assert "entropic-time[pipelines]" in refused(capsys, "estimate", *words)


def test_a_file_that_is_no_schedule_is_named(capsys, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert "was not written by save_schedule" in refused(capsys, "convert", tmp_path / "x.json")
    assert "invalid choice" in refused(capsys, "convert", tmp_path / "x.json", "--format", "yaml")
