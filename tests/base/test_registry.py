import pytest

from evenflow.base.errors import RegistryError
from evenflow.base.registry import Registry


def test_a_name_is_imported_when_it_is_asked_for():
    registry = Registry("thing", {"path": "pathlib:Path", "broken": "no_such_module:x"})
    import pathlib

    assert registry.load("path") is pathlib.Path
    assert list(registry) == ["broken", "path"]
    with pytest.raises(ModuleNotFoundError):
        registry.load("broken")


def test_an_unknown_name_lists_the_known_ones():
    registry = Registry("thing", {"a": "m:a", "b": "m:b"})
    with pytest.raises(RegistryError, match=r"unknown thing 'c'; known: a, b"):
        registry.load("c")


def test_a_name_is_taken_once():
    registry = Registry("thing", {"a": "m:a"})
    with pytest.raises(RegistryError, match="already registered as m:a"):
        registry.add("a", "m:other")
