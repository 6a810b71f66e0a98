"""Snapshots as `studies.published.snapshots` writes them, and the pieces of hostile pickles, written by hand."""

import struct

from studies.published.snapshots import (
    SOURCE,
    EasyDict,
    Persistent,
    legacy_storage,
    module_state,
    pickled,
    snapshot,
)

__all__ = ["SOURCE", "EasyDict", "Persistent", "legacy_storage", "module_state", "pickled", "snapshot"]

# Pieces of pickles by hand


def text(value):
    value = value.encode()
    return b"X" + struct.pack("<I", len(value)) + value


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def content(value):
    return b"B" + struct.pack("<I", len(value)) + value


def named(module, name):
    """STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def program(*steps):
    return b"\x80\x04" + b"".join(steps) + b"."
