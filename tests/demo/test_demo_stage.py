"""A stage of one's own: read from a file, or refused with what is wrong."""

import json

import pytest

from evenflow.base.errors import ConfigError
from evenflow.demo.run import client_plans
from evenflow.demo.stage import embedded_stage, read_stage

TOLD = {
    "title": "a model",
    "model": "/models/m",
    "adapters": {"a": {"path": "/a", "description": "d"}, "b": {"path": "/b"}},
    "example_prompts": ["p"],
    "questions": ["q"],
    "beginnings": ["once"],
    "memory": "96MiB",
}


def test_a_stage_is_what_its_file_says(tmp_path):
    file = tmp_path / "stage.json"
    file.write_text(json.dumps(TOLD))
    stage = read_stage(file)
    assert list(stage.adapters) == ["a", "b"]
    plans = client_plans([], 4, stage)
    assert plans[0].beginnings == ("once",)
    assert {name for plan in plans[1:] for name in plan.adapters} == {"a", "b", "base"}


@pytest.mark.parametrize("change", [{"adapters": {}}, {"questions": []}, {"model": None}, {"adapters": ["a"]}, None])
def test_a_stage_that_cannot_be_played_on_is_refused(tmp_path, change):
    file = tmp_path / "stage.json"
    file.write_text("{" if change is None else json.dumps(TOLD | change))
    with pytest.raises(ConfigError, match="stage"):
        read_stage(file)


def test_the_embedded_stage_is_complete():
    stage = embedded_stage()
    assert len(stage.adapters) == 6
    assert stage.questions
    assert stage.beginnings
