"""Logs of conversations become traces: cleaned, drawn, stretched to the rate; every fault of a file is named."""

import json

import numpy as np
import pytest

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.conversations import clean, read_conversations, real_trace


def cleaned(i, model="m", prompt="a b", reply="c d e", **changes):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return {"conversation_id": f"c{i}", "model": model, "tstamp": 100.0 + i, "conversation": turns, **changes}


def words(text):
    return len(text.split())


def test_both_forms_are_read(tmp_path):
    line = {
        "type": "chat",
        "tstamp": 7.0,
        "model": "vicuna",
        "state": {"conv_id": "x", "offset": 1, "messages": [["system", "be nice"], ["USER", "hi"], ["ASSISTANT", "hello you"]]},
    }
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({"type": "upvote"}) + "\n")
    (found,) = read_conversations(path)
    assert (found.conversation_id, found.model, found.logged_s, found.prompt, found.reply) == (
        "x",
        "vicuna",
        7.0,
        "hi",
        "hello you",
    )
    path.write_text(json.dumps([cleaned(1), cleaned(0)]))
    assert [c.conversation_id for c in read_conversations(path)] == ["c0", "c1"]


@pytest.mark.parametrize(
    "record",
    [
        cleaned(1, type="upvote"),
        cleaned(1, conversation=cleaned(1)["conversation"] * 2),
        cleaned(1, reply=["an", "image"]),
        cleaned(1, reply=""),
        cleaned(1, reply="**NETWORK ERROR".replace("**", "") + " DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE."),
        cleaned(1, model=None),
        cleaned(1, tstamp="yesterday"),
        cleaned(1, tstamp=True),
        cleaned(1, conversation_id=3),
        {"state": {"messages": 3}},
        {},
    ],
)
def test_what_is_not_one_question_with_one_answer_is_left_out(record):
    assert clean([record]) == []


def test_the_latest_of_a_conversation_counts():
    first, second = cleaned(1, reply="old"), cleaned(1, reply="new", tstamp=500.0)
    for order in ([first, second], [second, first]):
        assert [c.reply for c in clean(order)] == ["new"]


def test_drawn_without_replacement_and_stretched():
    rng = np.random.default_rng(0)
    logged = np.sort(rng.uniform(0, 1e5, 400))
    log = clean(cleaned(i, f"model-{i % 7}", "a " * (i + 1), "b " * 20, tstamp=float(t)) for i, t in enumerate(logged))
    trace = real_trace(log, words, rate=2.0, duration_s=50.0, max_tokens=300)
    assert len(trace) == 100
    assert trace.arrival_s[0] == 0
    assert trace.arrival_s[-1] == pytest.approx(50.0)
    assert len(set(trace.input_len.tolist())) == 100
    assert trace.input_len.max() < 300
    assert set(trace.output_len.tolist()) == {20}
    # the order and the proportions of the log: prompt k was logged at time k
    at = np.array([log[k - 1].logged_s for k in trace.input_len])
    assert trace.arrival_s == pytest.approx((at - at[0]) / (at[-1] - at[0]) * 50.0)
    assert {f"model-{(k - 1) % 7}" == row.adapter for k, row in zip(trace.input_len, trace, strict=True)} == {True}
    assert real_trace(log, words, rate=2.0, duration_s=50.0, max_tokens=300).input_len.tolist() == trace.input_len.tolist()
    few = real_trace(log, words, rate=2.0, duration_s=50.0, num_adapters=3)
    assert set(few.adapters) == {"adapter-0", "adapter-1", "adapter-2"}


def test_too_few_conversations_are_told():
    log = clean(cleaned(i, prompt="long " * 600) for i in range(10))
    with pytest.raises(ConfigError, match="need 5 conversations of fewer than 512 tokens each way; 0 were found among 10"):
        real_trace(log, words, rate=1.0, duration_s=5.0)
    with pytest.raises(ConfigError, match="0 were found"):
        real_trace([], words, rate=1.0, duration_s=5.0)
    with pytest.raises(ConfigError, match="num_adapters 0"):
        real_trace(log, words, rate=1.0, num_adapters=0)


def test_broken_files(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(ConfigError, match="cannot read"):
        read_conversations(path)
    for text, message in [("{}\n{", "line 2"), ("[1]", "record 1 is int"), ("[", "Expecting value"), ("3", "record 1 is int")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_conversations(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_conversations(path)
