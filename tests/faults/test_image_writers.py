"""Two processes that write one folder: they share the images, or one training is refused; nothing half is left."""

import dataclasses
import errno
import json
import os
import threading
import time

import pytest
import torch

from entropic import edm_sigmas
from entropic.images import generate as generating
from entropic.images.generate import generate, load_generated
from entropic.images.networks.small import SmallUNet
from entropic.images.train import train
from tests.conftest import start_process
from tests.images.test_generate import _digests, _fill, _small, slow_fill
from tests.images.test_train import TINY, digests, lines, noise_images, train_tiny


@pytest.fixture(name="network", scope="module")
def _network():
    return _small()


def test_two_jobs_share_one_folder(network, tmp_path):
    """Three jobs that know nothing of each other start at once; each returns everything, and the folder is right."""
    _fill(network, tmp_path / "one")
    jobs = [start_process(slow_fill, tmp_path / "two") for _ in range(3)]
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert _digests(tmp_path / "two") == _digests(tmp_path / "one")
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


def test_of_two_jobs_of_other_arguments_one_is_refused(tmp_path):
    """Ten times two threads claim a folder at the same moment: one has it, the other is told what differs."""
    for turn in range(10):
        barrier, said = threading.Barrier(2), []

        def claim(chunk, folder=tmp_path / str(turn), barrier=barrier, said=said):
            arguments = dict.fromkeys(generating._ARGUMENTS, 1)
            arguments |= {"seeds": [1], "output": "uint8", "features": {}, "chunk": chunk}
            arguments["contents"] = {"sampler": "", "decode": "", "features": {}}
            barrier.wait()
            try:
                generating._claim(folder, arguments)
            except ValueError as error:
                said.append(str(error))

        threads = [threading.Thread(target=claim, args=(chunk,)) for chunk in (2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said) == 1 and "was made with" in said[0]
        assert [path.name for path in (tmp_path / str(turn)).iterdir()] == ["manifest.json"]


def test_a_full_disk_leaves_nothing_half(network, tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        generate(network, edm_sigmas(2), range(3), out=tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} <= {"manifest.json"}
    with pytest.raises(OSError, match="No space left"):
        train(
            dataclasses.replace(TINY, steps=3), tmp_path / "b", *noise_images(), device="cpu", progress=False
        )
    assert not [path for path in (tmp_path / "b").iterdir() if path.name.endswith(".tmp")]
    monkeypatch.undo()
    generate(network, edm_sigmas(2), range(3), out=tmp_path / "a")
    assert len(load_generated(tmp_path / "a").images) == 3


def test_a_failing_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY, steps=10)
    save, count = torch.save, []

    def fail(state, file):
        count.append(1)
        if len(count) == 1:
            return save(state, file)
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, tmp_path, *noise_images(), device="cpu", progress=False)
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.pt", "weights.log.jsonl", ".lock"}
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 5
    monkeypatch.undo()
    train(recipe, tmp_path, *noise_images(), device="cpu", progress=False)
    train(recipe, tmp_path / "whole", *noise_images(), device="cpu", progress=False)
    assert digests(tmp_path) == digests(tmp_path / "whole")


def train_long(folder):
    train_tiny(folder, steps=4000)


def test_a_second_training_is_refused_and_a_killed_one_blocks_nobody(tmp_path):
    first = start_process(train_long, tmp_path)
    try:
        limit = time.monotonic() + 60
        while lines(tmp_path) < 1 and time.monotonic() < limit:
            time.sleep(0.01)
        with pytest.raises(ValueError, match="is being written by another training"):
            train_tiny(tmp_path)
        assert first.is_alive()
    finally:
        first.kill()
        first.join()
    for path in tmp_path.glob("checkpoint.pt"):
        path.unlink()
    train_tiny(tmp_path)
    log = [json.loads(line) for line in (tmp_path / "weights.log.jsonl").read_text().splitlines()[1:]]
    assert [line["step"] for line in log] == [*range(7, 60, 7), 60]
    assert sum(map(sum, (line["count"] for line in log))) <= TINY.steps * TINY.batch


def test_the_lock_goes_with_an_error(tmp_path):
    with pytest.raises(ValueError, match="lower lr"):
        train(
            dataclasses.replace(TINY, lr=1e30, warmup=1),
            tmp_path,
            *noise_images(),
            device="cpu",
            progress=False,
        )
    with pytest.raises(ValueError, match="lower lr"):  # and not: is being written
        train(
            dataclasses.replace(TINY, lr=1e30, warmup=1),
            tmp_path,
            *noise_images(),
            device="cpu",
            progress=False,
        )


def test_networks_may_be_saved_at_once(tmp_path):
    from entropic.images.networks.small import load_network, save_network

    network, wrong = SmallUNet(**TINY.network), []

    def save():
        try:
            for _ in range(20):
                save_network(tmp_path / "w.safetensors", network, {})
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    load_network(tmp_path / "w.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "w.json"}
