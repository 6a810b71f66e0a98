"""Packs what a reader needs in twenty years into one zip: python notebooks/archive.py [ROOT]

It holds the tracked sources at HEAD (among them the expected values, the lock and the CODECHECK manifest), the built
book, its pdf, the results, `SHA256SUMS`, and `.zenodo.json`, which is made from CITATION.cff. Equal commits and equal
books give equal bytes: entries are sorted, and bear the date of the commit.
It stands here, beside run.py, as it packs the whole repository, of which the book is a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import yaml

BUILT = ("book/_build/html", "book/_build/results")
STAMP = "book/_build/html.json"  # of what the html was built
PDF = "book/_build/entropic.pdf"


def git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, check=True).stdout


def zenodo(cff: dict) -> dict:
    """What Zenodo asks of a deposit, from CITATION.cff."""
    paper = cff["preferred-citation"]
    arxiv = [one["value"] for one in paper.get("identifiers", []) if one["value"].startswith("arXiv:")]
    names = [one.get("name") or f"{one['family-names']}, {one['given-names']}" for one in cff["authors"]]
    return {
        "title": cff["title"],
        "upload_type": "software",
        "version": str(cff["version"]),
        "license": cff["license"],
        "creators": [{"name": name} for name in names],
        "description": cff.get("abstract", cff["message"]),
        "keywords": cff["keywords"],
        "related_identifiers": [{"identifier": one, "relation": "isSupplementTo"} for one in arxiv],
    }


def entries(root: Path) -> dict[str, bytes]:
    """Every file of the archive but the sums, by its path. ValueError: a changed tree, or nothing built."""
    changed = git(root, "status", "--porcelain").decode().splitlines()
    if changed:
        raise ValueError(f"the tree differs from HEAD ({changed[0].strip()}): commit or stash first")
    for need, how in ((STAMP, "make book"), (PDF, "make pdf")):
        if not (root / need).is_file():
            raise ValueError(f"{need} is not there: {how}")
    head, built = git(root, "rev-parse", "HEAD").decode().strip(), json.loads((root / STAMP).read_bytes())
    if built["commit"] != {"commit": head, "dirty": False}:
        raise ValueError(f"the book is of {built['commit']}, and HEAD is {head}: make book")
    if (root / PDF).stat().st_mtime < (root / STAMP).stat().st_mtime:
        raise ValueError(f"{PDF} is older than the book: make pdf")
    tracked = git(root, "ls-tree", "-r", "-z", "--name-only", "HEAD").decode().split("\0")
    found = {name: (root / name).read_bytes() for name in tracked if (root / name).is_file()}
    for folder in BUILT:
        for path in (root / folder).rglob("*"):
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    found[PDF] = (root / PDF).read_bytes()
    cff = yaml.safe_load(found["CITATION.cff"])
    found[".zenodo.json"] = (json.dumps(zenodo(cff), indent=1, ensure_ascii=False) + "\n").encode()
    manifest = [one["file"] for one in yaml.safe_load(found["codecheck.yml"])["manifest"]]
    missing = [file for file in manifest if file not in found]
    if missing:
        raise ValueError(f"codecheck.yml names {missing[0]}, which the book has not made: make book")
    return found


def pack(root: Path) -> Path:
    """ROOT/book/_build/entropic-VERSION.zip."""
    found = entries(root)
    stamp = int(os.environ.get("SOURCE_DATE_EPOCH") or git(root, "log", "-1", "--format=%ct"))
    when = time.gmtime(max(stamp, 315532800))[:6]  # a zip knows no time before 1980
    sums = "".join(f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in sorted(found))
    found["SHA256SUMS"] = sums.encode()
    name = f"entropic-{yaml.safe_load(found['CITATION.cff'])['version']}"
    target = root / "book" / "_build" / f"{name}.zip"
    part = target.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        for path in sorted(found):
            about = zipfile.ZipInfo(f"{name}/{path}", when)
            about.compress_type, about.external_attr, about.create_system = (
                zipfile.ZIP_DEFLATED,
                0o644 << 16,
                3,
            )
            archive.writestr(about, found[path], compresslevel=6)
    part.replace(target)
    return target


def main(root: str = ".") -> int:
    try:
        target = pack(Path(root).resolve())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{target} ({target.stat().st_size / 1e6:.1f} MB, sha256 {hashlib.sha256(target.read_bytes()).hexdigest()})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
