"""A trace file is read whole or refused with the file, the line and the reason."""

import os

import pytest

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.trace_files import read_trace, write_trace
from evenflow.bench.replay.workload import make_workload

HEADER = "arrival_s,client,input_len,output_len\n"


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_columns_in_any_order_and_more_than_asked_for(tmp_path):
    text = "\ufeffclient, output_len,arrival_s,note,input_len\nann,4,0.5,x,3\n\nbob,2,0.5,,1\n"
    trace = read_trace(write(tmp_path, text))
    assert [(r.arrival_s, r.client, r.input_len, r.output_len, r.adapter) for r in trace] == [
        (0.5, "ann", 3, 4, None),
        (0.5, "bob", 1, 2, None),
    ]
    assert trace.horizon_s == 1.0
    assert trace.name == "trace"


def test_adapters(tmp_path):
    text = "arrival_s,client,input_len,output_len,adapter\n0,a,1,1,x\n1,a,1,1,\n2,b,1,1,x\n"
    assert [r.adapter for r in read_trace(write(tmp_path, text))] == ["x", None, "x"]


def test_a_workload_survives_the_file(tmp_path):
    for name in ("poisson_short_long", "adapter_skewed"):
        trace = make_workload(name, 1)
        write_trace(trace, tmp_path / "out.csv")
        again = read_trace(tmp_path / "out.csv")
        assert again.arrival_s == pytest.approx(trace.arrival_s, abs=1e-6)
        rows = zip(list(trace)[:500], list(again)[:500], strict=True)
        assert all(
            (a.client, a.input_len, a.output_len, a.adapter) == (b.client, b.input_len, b.output_len, b.adapter)
            for a, b in rows
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing columns arrival_s, client, input_len, output_len; .*found: nothing"),
        ("arrival_s,client,input_len\n", "missing column output_len"),
        (HEADER, "no requests"),
        (HEADER + "0,a,1,1\n-1,a,1,1\n", "line 3: arrival_s is -1"),
        (HEADER + "nan,a,1,1\n", "line 2: arrival_s is nan"),
        (HEADER + "inf,a,1,1\n", "line 2: arrival_s is inf"),
        (HEADER + "1e300,a,1,1\n", r"arrival_s is 1e300; times are seconds from 0 to 1e\+09"),
        (HEADER + f"0,a,1,{10**25}\n", "allowed: at most 1,000,000,000 tokens"),
        (HEADER + "5,a,1,1\n4,a,1,1\n", "line 3: arrival_s 4 comes after 5; sort"),
        (HEADER + "0,a,0,1\n", "line 2: input_len is 0"),
        (HEADER + "0,a,1,-3\n", "output_len -3"),
        (HEADER + "0,a,1.5,1\n", "line 2: .*1.5"),
        (HEADER + "x,a,1,1\n", "line 2: .*'x'"),
        (HEADER + "0,a,1\n", "line 2: too few cells"),
        (HEADER + "0, ,1,1\n", "line 2: the client has no name"),
        (HEADER + f"0,a,{'9' * 5000},1\n", "line 2"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(write(tmp_path, text))
    assert "trace.csv" in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.csv.*No such file"):
        read_trace(tmp_path / "nothing.csv")
    with pytest.raises(ConfigError, match="irectory"):
        read_trace(tmp_path)
    (tmp_path / "b.csv").write_bytes(os.urandom(4096) + b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.csv"):
        read_trace(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match=r"/nowhere/x\.csv"):
        write_trace(make_workload("proportional"), "/nowhere/x.csv")


def test_a_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("the system has no /dev/full to stand for a full disk")
    with pytest.raises(ConfigError, match="No space"):
        write_trace(make_workload("proportional"), "/dev/full")


def test_a_million_rows(tmp_path):
    block = "".join(f"{i * 0.001:.3f},c{i % 97},{i % 500 + 1},{i % 300 + 1}\n" for i in range(1000))
    path = tmp_path / "big.csv"
    with path.open("w") as stream:
        stream.write(HEADER)
        for second in range(1000):
            stream.write(block if second == 0 else block.replace("\n0.", f"\n{second}.").replace("0.000,", f"{second}.000,", 1))
    told = []
    trace = read_trace(path, told.append)
    assert len(trace) == 1_000_000
    assert told[-1] == 1_000_000
    assert trace.last_arrival_s == pytest.approx(999.999)
