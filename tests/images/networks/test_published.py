"""The list of published files: whole, consistent with the paper's tables, and fetched as it says."""

import hashlib
import math
import subprocess
import sys

import pytest

from entropic.images import data
from entropic.images.networks import published as module
from entropic.images.networks.published import fetch_published, find, main, published
from tests.images.test_downloads import Server

MILLIONS = {"XS": 124.71, "S": 280.21, "M": 497.81, "L": 777.50, "XL": 1119.28, "XXL": 1523.16}  # Karras 2024
EDM_PARAMETERS = {"CIFAR-10": 55_733_891, "FFHQ-64": 61_805_571}
CDN = "https://nvlabs-fi-cdn.nvidia.com"
NAME = "edm2-img512-xs-2147483-0.135"


def test_every_file_is_listed_once_under_the_name_of_its_file():
    rows = published()
    assert len({one.name for one in rows}) == len({one.url for one in rows}) == len(rows) == 2 + 4 + 12 + 4
    folders = {
        ("EDM2-", False): f"{CDN}/edm2/posthoc-reconstructions/{{}}.pkl",
        ("EDM-VP", False): f"{CDN}/edm/pretrained/{{}}.pkl",
        ("", True): f"{CDN}/edm2/dataset-refs/{{}}.pkl",
        ("", False): f"{CDN}/edm/fid-refs/{{}}.npz",
    }
    for one in rows:
        kind = one.network if one.network in ("", "EDM-VP") else "EDM2-"
        assert one.url == folders[kind, kind == "" and one.dataset.startswith("ImageNet")].format(one.name)
        assert one.licence == "CC BY-NC-SA 4.0"
        if kind == "EDM2-":
            short, size = one.name.split("-")[1:3]
            assert (one.dataset, one.network) == (
                f"ImageNet-{short.removeprefix('img')}",
                f"EDM2-{size.upper()}",
            )
            assert one.tuned_for in ("FID", "FD-DINOv2")
        else:
            assert one.tuned_for == ""
    large = {(one.network, one.tuned_for) for one in rows if one.dataset == "ImageNet-512" and one.network}
    assert large == {(f"EDM2-{size}", metric) for size in MILLIONS for metric in ("FID", "FD-DINOv2")}


def test_longer_averaging_goes_with_dinov2():
    """FD-DINOv2 asks for a longer EMA than FID does, for each size."""
    ema = {
        (one.network, one.tuned_for): float(one.name.rpartition("-")[2])
        for one in published()
        if "512-" in one.name
    }
    assert len(ema) == 12
    for size in MILLIONS:
        assert ema[f"EDM2-{size}", "FID"] < ema[f"EDM2-{size}", "FD-DINOv2"]


def test_megabytes_are_those_of_the_numbers():
    for one in published():
        if one.network.startswith("EDM2"):
            count = 2e6 * MILLIONS[one.network.removeprefix("EDM2-")]
        elif one.network:
            count = 4 * EDM_PARAMETERS[one.dataset]
        else:  # mean and covariance of 2048 Inception features, for ImageNet of 1024 DINOv2 features too
            features = (2048, 1024) if one.dataset.startswith("ImageNet") else (2048,)
            count = 8 * sum(k + k * k for k in features)
        assert one.megabytes == math.ceil(count / 2**20)
    assert find(NAME).megabytes == 238  # as published


def test_in_paper_is_what_its_tables_say():
    seen = {
        (row["dataset"], row["network"], row["snapshot_tuned_for"])
        for number in range(1, 7)
        for row in data.paper_table(number)
    }
    sets = {dataset for dataset, _, _ in seen}
    for one in published():
        tuned = one.tuned_for if one.dataset == "ImageNet-512" else ""  # table 4 names no snapshot
        expected = (one.dataset, one.network, tuned) in seen if one.network else one.dataset in sets
        assert one.in_paper == expected, one.name
    assert sum(one.in_paper for one in published() if one.network) == len(seen) == 8


def test_find_takes_file_names_and_lists_near_ones():
    assert find(NAME) == find(f"{NAME}.pkl") and find("cifar10-32x32.npz").network == ""
    with pytest.raises(ValueError, match="name = 'edm2-img512-xs' is not published") as caught:
        find("edm2-img512-xs")
    assert "edm2-img512-xs-2147483-0.135" in str(caught.value) and "ffhq" not in str(caught.value)
    with pytest.raises(ValueError, match=f"{NAME}.*img512$"):  # nothing is near: all
        find("?")


@pytest.fixture(name="server")
def _server(tmp_path, monkeypatch):
    """All files of the list in miniature, from a server on this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENTROPIC_CACHE", str(tmp_path))
    server, rows = Server(), published()
    moved = [one._replace(url=f"{server.url}/{one.url.rpartition('/')[2]}", megabytes=0) for one in rows]
    monkeypatch.setattr(module, "published", lambda: moved)
    server.files = {one.path.name: one.name.encode() for one in moved}
    yield server
    server.close()


def test_fetched_into_the_cache_with_licence_and_record(server, tmp_path, capsys):
    path = fetch_published(NAME)
    assert path == tmp_path / "published" / f"{NAME}.pkl" and path.read_bytes() == NAME.encode()
    said = capsys.readouterr().err
    assert f"{NAME}.pkl, about 0 MB. Licence CC BY-NC-SA 4.0" in said and "first file is trusted" in said
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"expected {hashlib.sha256(NAME.encode()).hexdigest()}"):
        fetch_published(NAME)
    with pytest.raises(ValueError, match=f"expected {'0' * 64}, as passed"):
        fetch_published("img64", sha256="0" * 64)


def test_command_lists_fetches_and_pins(server, tmp_path, capsys):
    main(["--list"])
    main([])
    shown = capsys.readouterr().out
    assert shown.count("\n") == 2 * (1 + 22 + 2) and len(set(shown.splitlines())) == 25
    (line,) = {line for line in shown.splitlines() if line.startswith(NAME)}
    assert line.split() == [NAME, "ImageNet-512", "EDM2-XS", "FID", "0", "yes"]
    digest = hashlib.sha256(b"img512").hexdigest()
    main([NAME, f"{NAME}.pkl", "--pin", f"img512.pkl={digest}"])
    folder = tmp_path / "published"
    assert capsys.readouterr().out.split() == [str(folder / f"{NAME}.pkl"), str(folder / "img512.pkl")]
    assert len(server.asked) == 2
    main([NAME, "--list"])
    assert capsys.readouterr().out.splitlines()[1].endswith("yes           yes")
    for words, message in (
        (["--pin", f"img64={digest}"], f"expected {digest}"),
        (["edm2"], "is not published"),
        (["--pin", "img64=1"], "64 hexadecimal"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(words)
    with pytest.raises(SystemExit):
        main(["--pin", "img64"])
    assert "write name=sha256" in capsys.readouterr().err


def test_command_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "entropic.images.networks.published"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stderr == "" and "edm-ffhq-64x64-uncond-vp" in run.stdout
