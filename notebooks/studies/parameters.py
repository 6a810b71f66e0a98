"""A page's parameters: how a value is written, and whether it fits the notebook.

Values come from YAML files and from ``-p NAME VALUE`` on a command line. Both are read here, by the rules of YAML 1.2,
and only as JSON types: null, true or false, numbers, text, lists, and mappings with text as keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

__all__ = ["Refused", "absolute", "fit", "parse", "read_override", "read_yaml", "take_overrides"]

_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {word: None for word in ("", "~", "null", "Null", "NULL")}
_WORDS |= {word: True for word in ("true", "True", "TRUE")} | {
    word: False for word in ("false", "False", "FALSE")
}


class Refused(ValueError):
    """What was asked for makes no sense; the message says what would."""


def parse(text: str, where: str = "the value"):
    """The value that a YAML 1.2 text stands for: 1e1 is 10.0, 010 is 10, yes is text.

    where: what the text is, for the message of an error

    Raises Refused for what is no YAML or no JSON type: tags (!!python/tuple, !!binary), anchors and aliases, keys that
    are no text or occur twice, infinities and NaN, and more than one document.
    """
    try:
        text.encode("utf-8")
        events = list(yaml.parse(text, Loader=yaml.SafeLoader))
        if sum(isinstance(event, yaml.DocumentStartEvent) for event in events) > 1:
            raise Refused(f"{where} holds several YAML documents: write one, without '---'")
        stack = [event for event in reversed(events) if not isinstance(event, _FRAME)]
        return _value(stack, where) if stack else None
    except yaml.YAMLError as error:
        raise Refused(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    except UnicodeEncodeError as error:
        raise Refused(f"{where} = {text!r} is not Unicode: write it in UTF-8") from error
    except RecursionError as error:
        raise Refused(f"{where} is nested too deeply: use fewer brackets") from error


def read_yaml(path: Path):
    """What a YAML file holds, by the rules of `parse`; Refused names the file."""
    try:
        return parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error


def fit(name: str, value, default):
    """`value` as the type of the notebook's own value, `default`: 1000.0 where that is whole as 1000, 5 as 5.0.

    An item of a list must fit one of the items of the default list.

    Raises Refused with the parameter's name, the value, and what would fit.
    """
    if type(value) is type(default) and not isinstance(value, list):
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and isinstance(default, float):
        try:
            return float(value)
        except OverflowError as error:
            raise Refused(f"{name} = {value!r} is too large for a number with a point") from error
    if number and type(default) is int and value == int(value):
        return int(value)
    if isinstance(value, list) and isinstance(default, list):
        return [_fit_item(name, item, default) for item in value]
    raise Refused(f"{name} = {value!r} is {_kind(value)}: must be {_kind(default)}, such as {default!r}")


def take_overrides(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs of every ``-p NAME VALUE`` in a command line, and the other words.

    Whatever follows a name is its value, so that -1e-3 is a number and not an option.

    Raises Refused where a name or a value is missing.
    """
    pairs, others, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if word != "-p":
            others.append(word)
        elif len(words) < 2:
            raise Refused(f"-p {' '.join(words)}: write -p NAME VALUE")
        else:
            pairs.append((words.pop(0), words.pop(0)))
    return pairs, others


def read_override(name: str, text: str, default):
    """The value of ``-p NAME TEXT``, of the type of `default`.

    Where the default is text, `text` is taken as it stands, unless it is quoted: a file's name may hold '#' or ': '.
    """
    if isinstance(default, str) and text[:1] not in ('"', "'"):
        if not text.isprintable():
            raise Refused(f"-p {name} {text!r} holds characters that cannot be printed: leave them out")
        return absolute(text)
    return _absolutes(fit(name, parse(text, f"-p {name}"), default))


def absolute(text: str) -> str:
    """The full path where `text` names a file below the working folder, such as weights.safetensors; else `text`."""
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    try:
        return str(path.resolve()) if path.suffix and path.is_file() else text
    except OSError:  # longer than any file's name
        return text


_FRAME = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)


def _value(stack: list, where: str):
    """The value of the next events of `stack`, whose end is the next one; they are taken off it."""
    event = stack.pop()
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise Refused(f"{where} has an anchor or an alias (& or *): write the value out, or quote the text")
    if event.tag is not None:
        raise Refused(f"{where} has the tag {event.tag!r}: only JSON types are taken, without tags")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value, where) if event.style is None else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(stack[-1], yaml.SequenceEndEvent):
            items.append(_value(stack, where))
        stack.pop()
        return items
    found = {}
    while not isinstance(stack[-1], yaml.MappingEndEvent):
        key = _value(stack, where)
        if not isinstance(key, str):
            raise Refused(f"{where} has the key {key!r}: must be text; quote it")
        if key in found:
            raise Refused(f"{where} has the key {key!r} twice: write it once")
        found[key] = _value(stack, where)
    stack.pop()
    return found


def _scalar(text: str, where: str):
    """What an unquoted word stands for in YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        if _BASED.fullmatch(text):
            return int(text, 0)
    except ValueError as error:  # thousands of digits
        raise Refused(f"{where} has a number of {len(text)} digits: write a shorter one") from error
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise Refused(f"{where} has the number {text}: must be finite")
    return float(text) if _FLOAT.fullmatch(text) else text


def _fit_item(name, item, defaults):
    for default in defaults:
        try:
            return fit(name, item, default)
        except Refused:
            continue
    if not defaults:  # an empty list does not tell the type of its items
        return item
    raise Refused(f"{name} holds {item!r}, {_kind(item)}: must hold what {defaults!r} holds")


def _kind(value) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "nothing" if value is None else "a mapping")


def _absolutes(value):
    if isinstance(value, list):
        return [_absolutes(item) for item in value]
    return absolute(value) if isinstance(value, str) else value
