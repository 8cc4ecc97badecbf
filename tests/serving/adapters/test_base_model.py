"""Names and paths that mean one base model agree."""

import pytest

from evenflow.serving.adapters.base_model_hint import is_same_model


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
