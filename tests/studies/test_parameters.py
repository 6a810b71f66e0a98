"""Values of parameters: YAML 1.2, JSON types only, of the type of the notebook's own value, or refused by name."""

import json

import pytest

from studies.parameters import Refused, fit, parse, read_override, take_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e1", 10.0),
        ("-1e-3", -0.001),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        (".5", 0.5),
        ("5.", 5.0),
        ("false", False),
        ("True", True),
        ("no", "no"),
        ("on", "on"),
        ("2001-01-01", "2001-01-01"),
        ("<<", "<<"),
        ("", None),
        ("~", None),
        ("'12'", "12"),
        ('"a\\tb"', "a\tb"),
        ("[1, [a, 2.5], {b: null}]", [1, ["a", 2.5], {"b": None}]),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/tuple [1, 2]",
        '!!binary "YQ=="',
        "!!python/object/apply:os.system [true]",
        "!!str 5",
        "!x 1",
        "!!set {a, b}",
        "&a [*a]",
        "[&a 1, *a]",
        "{1: 2}",
        "{[a]: 2}",
        "{a: 1, a: 2}",
        ".nan",
        "-.inf",
        "1e999",
        "9" * 5000,
        "[" * 1200 + "]" * 1200,  # beyond the recursion limit
        "[1",
        "a: b: c",
        "1\n---\n2",
        "\ud800",
        "\x00",
        "@a",
    ],
)
def test_everything_else_is_refused_by_name(text):
    with pytest.raises(Refused, match="seed"):
        parse(text, "seed")


def test_any_value_is_a_literal_that_means_itself():
    """What is written into a notebook is the value's own repr: no text can end its quotes."""
    for text in ("\"'\\n__import__('os')\"", '"\\"; raise SystemExit #"', "{\"a'b\": ['\\\"']}"):
        value = parse(text)
        assert eval(repr(value), {"__builtins__": {}}) == value == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "default", "found"),
    [
        (1000.0, 3, 1000),
        (5, 100.0, 5.0),
        ([16, 32.0], [8], [16, 32]),
        ([["heun", 4.0]], [["ddim", 8]], [["heun", 4]]),
        (["a", 1], [], ["a", 1]),
        ([], [8], []),
        (False, True, False),
    ],
)
def test_a_value_takes_the_type_of_the_default(value, default, found):
    got = fit("n", value, default)
    assert repr(got) == repr(found)


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (1.5, 3),
        (True, 3),
        (1, True),
        ("false", True),
        ("3", 3),
        (None, 3),
        (3, [3]),
        ([3], 3),
        ([1, "a"], [8]),
        ([True], [8]),
        ({"a": 1}, 3),
        ("x", 1.0),
        (10**400, 1.0),
        (5, "text"),
    ],
)
def test_another_type_is_refused_with_what_would_fit(value, default):
    with pytest.raises(Refused, match="nfe"):
        fit("nfe", value, default)


def test_text_is_taken_as_it_stands(tmp_path, monkeypatch):
    for text in ("010", "false", "a #1: b", "[x", "-x", "!!binary x", "*"):
        assert read_override("store", text, "kept") == text
    assert read_override("store", "", "kept") == "" and read_override("store", "'a b'", "") == "a b"
    with pytest.raises(Refused, match="store"):
        read_override("store", "a\nb", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").touch()
    assert read_override("weights", "a.pkl", "") == str(tmp_path / "a.pkl")  # the kernel works elsewhere
    assert read_override("networks", "[a.pkl, b.pkl]", ["x"]) == [str(tmp_path / "a.pkl"), "b.pkl"]
    assert read_override("store", "x" * 5000 + ".pkl", "") == "x" * 5000 + ".pkl"


def test_what_follows_a_name_is_its_value():
    pairs, others = take_overrides(["run", "x", "-p", "seed", "-1e-3", "-p", "a", "-p", "--jobs", "2"])
    assert pairs == [("seed", "-1e-3"), ("a", "-p")] and others == ["run", "x", "--jobs", "2"]
    for words in (["-p"], ["-p", "seed"]):
        with pytest.raises(Refused, match="-p NAME VALUE"):
            take_overrides(words)
