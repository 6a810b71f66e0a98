"""The version, in one place: pyproject.toml and `entropic.__version__` have it from here."""

version = "0.1.0"
