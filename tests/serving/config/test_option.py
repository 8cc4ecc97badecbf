"""Options are declared once, and read alike wherever their values come from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from evenflow.base.errors import ConfigError
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.kinds import Choice, Count, Names, Number, PathTo, Size, Switch, Table, Text
from evenflow.serving.config.option import fields_given, option, options_by_name, options_of, read_options
from evenflow.serving.server.server_config import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Kettle:
    """A small configuration."""

    water_bytes: int = option(Size(), 1024, "How much.", name="water", aliases=("tea_water",))
    lid: bool = option(Switch(), True, "Whether it is closed.")

    def __post_init__(self) -> None:
        read_options(self)


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        (Count(), "17", 17),
        (Count(), "1k", 1000),
        (Count(), "32K", 32768),
        (Count(), "25.6k", 25600),
        (Count(), "2M", 2 << 20),
        (Count(none_words=("auto", "-1")), "auto", None),
        (Count(none_words=("auto", "-1")), -1, None),
        (Count(0), 0, 0),
        (Number(), "0.5", 0.5),
        (Number(least=0), 3, 3.0),
        (Size(), "2GiB", 2 << 30),
        (Size(), 17, 17),
        (Size(may_be_zero=True), "0", 0),
        (Choice(("auto", "float32"), {"float": "float32"}), "float", "float32"),
        (Text(synonyms={"int8": "int8-g32"}), "int8", "int8-g32"),
        (PathTo(), "~/models", Path.home() / "models"),
        (Names(), ["a", '["b", "c"]'], ("a", "b", "c")),
        (Names(), "a", ("a",)),
        (Table(), '{"temperature": 0.5}', {"temperature": 0.5}),
        (Switch(), False, False),
    ],
)
def test_kinds_read_text_and_native_values(kind, given, read):
    assert kind.read(given) == read


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Count(), "0"),
        (Count(), "many"),
        (Count(), "1.5K"),
        (Count(), True),
        (Count(), 2.0),
        (Count(1, 4), 5),
        (Count(), None),
        (Number(), "nan"),
        (Number(least=0), -1),
        (Number(above=0), 0),
        (Number(), True),
        (Size(), "0"),
        (Size(), "two"),
        (Size(), True),
        (Choice(("a",)), "b"),
        (Choice(("a",)), ["a"]),
        (Text(), 3),
        (PathTo(), 3),
        (PathTo(), "a\0b"),
        (PathTo(), "~nobody-of-that-name/x"),
        (Names(), [1]),
        (Names(), "[1]"),
        (Names(), 3),
        (Table(), "[]"),
        (Table(), "{"),
        (Switch(), "true"),
    ],
)
def test_kinds_refuse_what_they_cannot_read(kind, given):
    with pytest.raises(ValueError):
        kind.read(given)
    assert kind.allowed


@pytest.mark.parametrize("config_class", [EngineConfig, ServerConfig])
def test_every_field_is_an_option_with_a_help_and_defaults_are_allowed(config_class):
    declared = options_of(config_class)
    assert list(declared) == [field.name for field in fields(config_class)]
    for one in declared.values():
        assert one.help.endswith("."), one.field
        if not one.is_required:
            assert one.read(one.default) == one.default
        if one.default is None and one.has_flag:
            assert one.when_none, f"{one.field}: what is done when nobody says?"


def test_no_two_options_of_a_server_share_a_name():
    assert options_by_name(EngineConfig, ServerConfig)["memory"][1].field == "memory_bytes"


def test_the_error_names_the_option_and_what_is_allowed():
    with pytest.raises(ConfigError, match="max_num_seqs is 0; allowed: 1 to 4096"):
        EngineConfig(model="m", max_num_seqs=0)
    with pytest.raises(ConfigError, match="port is 'http'; allowed: 0 to 65535"):
        ServerConfig(port="http")


def test_fields_by_any_spelling():
    assert Kettle(**fields_given(Kettle, {"tea_water": "2KiB", "lid": False}, "Kettle")) == Kettle(water_bytes=2048, lid=False)
    with pytest.raises(ConfigError, match="Kettle has no option watr; did you mean water"):
        fields_given(Kettle, {"watr": 1}, "Kettle")
    with pytest.raises(ConfigError, match="water twice; water_bytes is another name"):
        fields_given(Kettle, {"water": 1, "water_bytes": 2}, "Kettle")
    with pytest.raises(ConfigError, match="allowed: lid, water"):
        fields_given(Kettle, {"zzzzzz": 1}, "Kettle")
