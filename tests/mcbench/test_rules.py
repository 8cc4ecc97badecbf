"""Rules, layers and run configurations: what is read, what is refused, and how it is said."""

from __future__ import annotations

import pytest

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.split.rules import CompressionRules, parse_rules, select_layers, stage_layers


def test_rules_are_read_by_site_and_direction() -> None:
    rules = parse_rules("tp.forward=int4-g32/two-shot; tp.backward=int8-g32 ; pp=topk:0.1")
    assert rules["tp.forward"].spec == "int4-g32"
    assert rules["tp.forward"].transport == "two-shot"
    assert rules["tp.backward"].transport is None
    assert rules["pp.forward"] == rules["pp.backward"]
    assert parse_rules("none") == {} == parse_rules("")
    assert parse_rules("tp=ef(topk:0.1)/one-shot")["tp.backward"].spec == "ef(topk:0.1)"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("xp=q8", RegistryError, "unknown site 'xp'; known: tp"),
        ("tp.sideways=q8", RegistryError, "unknown site"),
        ("tp=int9", RegistryError, "unknown compressor 'int9'"),
        ("tp=q8/ring", RegistryError, "unknown transport 'ring'"),
        ("tp=q8/all-reduce", ConfigError, "cannot be summed"),
        ("tp", ConfigError, "allowed: site=compressor"),
        ("tp=", ConfigError, "allowed: site=compressor"),
        ("tp=q8; tp.forward=q4", ConfigError, "two rules for tp.forward"),
        ("pp=q8/two-shot", ConfigError, "a transport of its own"),
        ("tp.backward=caat:0.5", ConfigError, "partial channels"),
    ],
)
def test_rules_that_cannot_work_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_rules(text)


def test_layers() -> None:
    assert select_layers("all", 4) == {0, 1, 2, 3}
    assert select_layers("last-half", 24) == set(range(12, 24)) == select_layers("13-24", 24)
    assert select_layers("first-half", 5) == {0, 1}
    assert select_layers("none", 4) == set()
    assert select_layers("3", 4) == {2}
    for text in ("5", "0-2", "3-2", "2-9"):
        with pytest.raises(ConfigError, match="1 to 4"):
            select_layers(text, 4)
    with pytest.raises(ConfigError, match="allowed: all, none"):
        select_layers("middle", 4)


def test_stages_are_even() -> None:
    assert [list(r) for r in stage_layers(4, 2)] == [[0, 1], [2, 3]]
    assert sum(len(r) for r in stage_layers(7, 3)) == 7
    with pytest.raises(ConfigError, match="cannot be cut"):
        stage_layers(2, 3)


def test_run_configurations_come_back_and_bad_ones_are_named() -> None:
    config = RunConfig(tp=2, compress="tp=q8", seeds=2)
    assert RunConfig.from_json(config.to_json()) == config
    assert config.key() == RunConfig(tp=2, compress="tp=q8", seeds=2).key()
    assert config.key() != RunConfig(tp=2, compress="tp=q4", seeds=2).key()
    with pytest.raises(ConfigError, match="unknown fields of a run: colour"):
        RunConfig.from_json({"colour": 1})
    for fields, message in (
        ({"tp": 0}, "tp is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"link": "fast"}, "allowed: unlimited"),
        ({"compress": "tp=q8"}, "only one rank at that site"),
        ({"tp": 2, "compress": "pp=q8"}, "only one rank at that site"),
        ({"tp": 2, "gradient": "up"}, "allowed: straight-through"),
        ({"tp": 2, "gradient": "tp.backward=same"}, "known: tp.forward, pp.forward"),
        ({"tp": 2, "emulate": True, "link": "1gbit"}, "have no link"),
        ({"pp": 2, "schedule": "zigzag"}, "allowed: gpipe, 1f1b"),
    ):
        with pytest.raises(ConfigError, match=message):
            RunConfig(**fields)
    with pytest.raises(ConfigError, match="module pattern"):
        CompressionRules.parse("none", modules="(")
