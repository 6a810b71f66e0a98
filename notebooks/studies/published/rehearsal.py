"""`make rehearse`: the whole path of a published network in two minutes, on tiny networks with random weights.

    python -m studies.published.rehearsal [FOLDER] [--processes 2]

It does what `make imagenet512` does, with the same programs: files are downloaded (from a server of its own on
127.0.0.1), the snapshot's error curve is measured, the grids are placed, torchrun makes images and features in several
processes, distances make the tables, and the page is run. So a machine can be tried before gigabytes are downloaded.
The numbers mean nothing. Everything stays in FOLDER, the cache included.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from entropic.images.downloads import fetch
from entropic.images.networks import dinov2, edm2
from entropic.images.networks.vae import autoencoder_class
from studies.pages import NOTEBOOKS, ROOT
from studies.published.snapshots import pickled, snapshot
from studies.report import read_csv

__all__ = ["EXTRACTOR", "LATENTS", "fill", "make_files", "make_page", "randomised", "rehearse", "served"]

PAGE, EXPERIMENT, EXTRACTOR = "paper_tables", "imagenet512", "dinov2-vit-l-14-bicubic"
LATENTS = {
    "img_resolution": 16,
    "img_channels": 4,
    "label_dim": 10,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
_SERVED = (
    "latents.pkl",
    "reference.pkl",
    "dino.pth",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


def randomised(network, seed):
    """The network with random weights that make F of order 1; the gains of EDM2, which start at zero, too."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.parameters():
        scale = 0.5 if tensor.ndim == 0 else tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.data.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def make_files(folder: Path):
    """Write what a run downloads, tiny and random: a snapshot, reference statistics, DINOv2 and the autoencoder.

    They are latents.pkl, reference.pkl, dino.pth and the folder vae. ModuleNotFoundError: the extra "vae" is missing.
    """
    latents = randomised(edm2.Precond(**LATENTS), 1).half()
    (folder / "latents.pkl").write_bytes(pickled(snapshot(latents, LATENTS)))
    torch.save(randomised(dinov2.DINOv2(depth=1), 3).state_dict(), folder / "dino.pth")
    generator = np.random.default_rng(4)
    moments = {}
    for key, width in (("fid", 2048), ("fd_dinov2", 1024)):
        moments[key] = {"mu": 0.1 * generator.standard_normal(width), "sigma": np.eye(width)}
    (folder / "reference.pkl").write_bytes(pickled({"num_images": 5000, **moments}))
    wide = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    wide |= {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        autoencoder_class()(**wide).save_pretrained(folder / "vae", safe_serialization=True)


@contextlib.contextmanager
def served(folder: Path):
    """The address of a server of that folder's files, on 127.0.0.1, for the block."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fill(words, processes=2, environment=None):
    """Make images and features of the experiment in several processes of torchrun; words: -p NAME VALUE ..."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    _python([*launcher, "-m", "studies.published", EXPERIMENT, *words], environment)


def make_page(book: Path, words, environment=None):
    """Run the page into a book of its own; the folder of its results."""
    run = [NOTEBOOKS / "run.py", "run", PAGE, "--profile", "smoke", "--book", book]
    _python([*run, *words, "-p", "experiment", EXPERIMENT], environment)
    return book / "_build" / "results" / PAGE


def parameters(files: Path, **changes):
    """The words -p NAME VALUE of the smallest run of the page with the files of `make_files`."""
    chosen = {
        "networks": [str(files / "latents.pkl")],
        "curve_network": str(files / "latents.pkl"),
        "curve_levels": 8,
        "curve_samples": 6,
        "reference": str(files / "reference.pkl"),
        "extractors": [EXTRACTOR],
        "nfe": [2],
        "images": 5,
        "runs": 2,
        "chunk": 2,
        "gallery_nfe": [2, 3],
        "store": "rehearsal",
        **changes,
    }
    return [word for name, value in chosen.items() for word in ("-p", name, json.dumps(value).strip('"'))]


def rehearse(folder: Path, processes=2, say=print):
    """The whole path in `folder`; the folder of the page's results.

    RuntimeError: a step failed, with what it said. ValueError: the table lacks a distance.
    """
    started = time.monotonic()

    def told(what):
        say(f"[{time.monotonic() - started:5.1f} s] {what}")

    there, files = folder / "server", folder / "downloads"
    for one in (there, files / "vae"):
        one.mkdir(parents=True, exist_ok=True)
    told("making a tiny network, its autoencoder and feature network, with random weights")
    make_files(there)
    with served(there) as address:
        told(f"downloading them from {address}")
        for name in _SERVED:
            fetch(f"{address}/{name}", files / name, note="Tiny and random.")
    environment = {
        "ENTROPIC_CACHE": str(folder / "cache"),
        "ENTROPIC_DINOV2": str(files / "dino.pth"),
        "ENTROPIC_VAE": str(files / "vae"),
    }
    words = parameters(files)
    told(f"error curve, grids, images and features, by torchrun with {processes} processes")
    fill(words, processes, environment)
    told("distances, tables and the page")
    results = make_page(folder / "book", words, environment)
    rows = read_csv(results / "rows.csv")
    found = rows.get("FD-DINOv2", [])
    if len(found) != 8 or not all(isinstance(value, float) and math.isfinite(value) for value in found):
        raise ValueError(f"{results / 'rows.csv'} has the distances {found}; there should be 8 numbers")
    told("done: what `make imagenet512` does works here")
    say(f"  page:    {folder / 'book' / 'notebooks' / PAGE}.ipynb\n  results: {results}/")
    return results


def _python(words, environment):
    """Run Python from the repository's root; RuntimeError with what it said where it fails."""
    paths = os.pathsep.join(filter(None, [str(ROOT), str(NOTEBOOKS), os.environ.get("PYTHONPATH")]))
    about = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | (environment or {})
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=about,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if run.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, words))}\nended with {run.returncode}:\n{run.stdout}{run.stderr}"
        )


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.published.rehearsal",
        description=__doc__.partition("\n")[0].partition(": ")[2],
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where everything stays; else a new temporary folder"
    )
    parser.add_argument("--processes", type=int, default=2, help="of torchrun, as many as you will have GPUs")
    given = parser.parse_args(arguments)
    if given.processes < 1:
        parser.error(f"--processes {given.processes}: must be 1 or more")
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-")) if given.folder is None else given.folder.absolute()
    if given.folder is not None and folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} holds files already; name an empty folder or a new one")
    try:
        rehearse(folder, given.processes)
    except (RuntimeError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"The rehearsal failed; what it made is in {folder}\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
