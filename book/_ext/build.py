"""Builds the html of a book folder, every warning an error: python book/_ext/build.py book"""

import re
import subprocess
import sys


def main(book: str) -> int:
    # jupyter-book 1.x has no `python -m jupyter_book`, and its script may not be on the path.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    words = ["build", "-W", "-n", "--keep-going", "--all", "-q", book]
    done = subprocess.run(command + words, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
        print(text[-6000:], file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
