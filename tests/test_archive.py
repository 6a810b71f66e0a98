"""The zip for a DOI and the pdf: equal bytes, true sums, and a refusal where the tree has changed."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from html import unescape

import pytest

import archive
import pdf
from tests.conftest import ROOT, run_python


@pytest.fixture
def small(tmp_path):
    """A repository with a built book of one page."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("CITATION.cff", "requirements.lock"):
        shutil.copyfile(ROOT / name, root / name)
    (root / "codecheck.yml").write_text("manifest:\n- file: book/_build/results/page/a.csv\n")
    (root / ".gitignore").write_text("/book/_build/\n")
    for name, text in {
        "html/index.html": '<h1>a</h1><img src="results/page/a.svg"><a href="results/page/a.csv">a</a>',
        "html/results/page/a.svg": "<svg/>",
        "html/results/page/a.csv": "a\n1\n",
        "results/page/a.csv": "a\n1\n",
    }.items():
        path = root / "book" / "_build" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        [*who, "commit", "-qm", "a", "--date", "2025-03-04T05:06:08Z"],
    ):
        about = {"GIT_COMMITTER_DATE": "2025-03-04T05:06:08Z", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        subprocess.run(["git", *words], cwd=root, check=True, env=about)
    head = archive.git(root, "rev-parse", "HEAD").decode().strip()
    stamp(root, head)
    (root / archive.PDF).write_text("%PDF")
    return root


def stamp(root, commit, dirty=False):
    """What `make book` leaves of the tree that it built the html of."""
    (root / archive.STAMP).write_text(json.dumps({"commit": {"commit": commit, "dirty": dirty}}))


def test_archive_is_equal_when_built_twice_and_its_sums_are_true(small):
    first = archive.pack(small).read_bytes()
    (small / "book" / "_build" / "html" / "index.html").touch()
    target = archive.pack(small)
    assert target.read_bytes() == first
    with zipfile.ZipFile(target) as packed:
        names = packed.namelist()
        assert names == sorted(names)
        assert {one.date_time for one in packed.infolist()} == {(2025, 3, 4, 5, 6, 8)}
        top = names[0].split("/")[0]
        sums = packed.read(f"{top}/SHA256SUMS").decode().splitlines()
        assert len(sums) == len(names) - 1
        for line in sums:
            digest, name = line.split("  ")
            assert hashlib.sha256(packed.read(f"{top}/{name}")).hexdigest() == digest
        inside = {name.removeprefix(f"{top}/") for name in names}
        page = packed.read(f"{top}/book/_build/html/index.html").decode()
        links = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert len(links) == 2 and {f"book/_build/html/{link}" for link in links} <= inside
        about = json.loads(packed.read(f"{top}/.zenodo.json"))
    assert {"requirements.lock", "codecheck.yml", "book/_build/html/index.html"} <= inside
    assert {"book/_build/results/page/a.csv", "book/_build/entropic.pdf"} <= inside
    assert about["creators"] and about["related_identifiers"][0]["identifier"] == "arXiv:2504.13612"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda root: (root / "CITATION.cff").write_text("changed"), "CITATION.cff.*commit or stash"),
        (lambda root: (root / "new.py").touch(), "new.py.*commit or stash"),
        (lambda root: (root / "book/_build/entropic.pdf").unlink(), "make pdf"),
        (lambda root: os.utime(root / "book/_build/entropic.pdf", (0, 0)), "older than the book: make pdf"),
        (lambda root: (root / archive.STAMP).unlink(), "make book"),
        (lambda root: stamp(root, "0" * 40), "the book is of .*make book"),
        (
            lambda root: stamp(root, archive.git(root, "rev-parse", "HEAD").decode().strip(), True),
            "make book",
        ),
        (lambda root: (root / "book/_build/results/page/a.csv").unlink(), "a.csv.*make book"),
    ],
)
def test_archive_is_refused_with_the_reason(small, spoil, reason):
    spoil(small)
    with pytest.raises(ValueError, match=reason):
        archive.pack(small)


def test_whole_book_joins_pages_with_places_of_their_own(tmp_path):
    (tmp_path / "notebooks").mkdir()
    head = (
        '<html><head><link rel="stylesheet" href="{}a.css"></head><body><article><section id="s"><h1>{}</h1>'
    )
    (tmp_path / "a.html").write_text(
        head.format("", "A") + '<a href="notebooks/b.html#s">to b</a><a href="a.csv">file</a>'
        '<div class="spend"><noscript><table></table></noscript></div></section></article>'
    )
    (tmp_path / "notebooks" / "b.html").write_text(
        head.format("../", "B")
        + '<img class="only-light" src="../r/x.svg"><img class="only-dark" src="y.svg"></article>'
    )
    text = pdf.whole(tmp_path, ["a.html", "notebooks/b.html"], "T", "")
    assert len(re.findall('id="page-[01]-s"', text)) == 2
    assert 'href="#page-1-s"' in text and "a.csv" not in text
    assert 'src="r/x.svg"' in text and "y.svg" not in text and "noscript" not in text


@pytest.fixture(scope="module")
def printed(html, browser):
    book = html.parent.parent
    made = run_python(ROOT / "notebooks" / "pdf.py", book)  # apart, as the tests' browser is in this process
    assert made.returncode == 0, made.stderr
    return book / "_build" / "entropic.pdf"


def test_pdf_has_an_outline_numbers_and_a_bounded_size(printed, html):
    from pypdf import PdfReader

    assert printed.stat().st_size < 25e6
    reader = PdfReader(printed)
    chapters = ["".join(entry.title.split()) for entry in reader.outline if not isinstance(entry, list)]
    titles = []
    for name in pdf.pages(html.parent.parent):
        found = re.search(r"<h1>(.*?)<a class=\"headerlink", (html / name).read_text("utf-8"))[1]
        titles.append("".join(unescape(re.sub(r"<[^>]*>", "", found)).split()))
    assert chapters == ["Contents", *titles]
    for number, page in enumerate(reader.pages, 1):
        assert page.extract_text().rstrip().endswith(f"· {number}")
    text = "".join(page.extract_text() for page in reader.pages)
    assert "\\(" not in text  # formulas are set
