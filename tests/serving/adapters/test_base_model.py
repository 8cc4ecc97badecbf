"""What an adapter says of its base model is read leniently, and names that mean one model agree."""

import json

import pytest

from evenflow.serving.adapters.base_model_hint import base_model_of, is_same_model


@pytest.mark.parametrize(
    ("stated", "served", "is_same"),
    [
        ("meta-llama/Llama-3.2-1B", ["/models/llama-3.2-1b/"], True),
        ("/train/Llama-3.2-1B/", ["base", "meta-llama/Llama-3.2-1B"], True),
        ("org/model", ["/home/u/.cache/huggingface/hub/models--org--model/snapshots/0123"], True),
        ("/cache/models--org--model/snapshots/9", ["model"], True),
        ("org/model-instruct", ["org/model", "/models/model"], False),
        ("model", [], False),
    ],
)
def test_names_and_paths_of_one_model_agree(stated, served, is_same):
    assert is_same_model(stated, served) is is_same


@pytest.mark.parametrize(
    ("text", "found"),
    [(json.dumps({"base_model_name_or_path": "a/b"}), "a/b"), ('{"base_model_name_or_path": 3}', ""), ("[]", ""), ("{", "")],
)
def test_what_cannot_be_read_says_nothing(tmp_path, text, found):
    (tmp_path / "adapter_config.json").write_text(text)
    assert base_model_of(tmp_path) == found
    assert base_model_of(tmp_path / "absent") == ""
