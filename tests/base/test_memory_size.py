import pytest

from evenflow.base.errors import ConfigError
from evenflow.base.memory_size import format_size, free_memory_bytes, parse_size, total_memory_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("64k", 64_000),
        ("65536", 65536),
        (4096, 4096),
        ("3b", 3),
        ("1tib", 1 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 furlong", "1e9", "0", "0.0GiB", 0, "1.5.2GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_sizes_are_written_in_binary_units():
    assert format_size(1536) == "1.5 KiB"
    assert format_size(2 << 30) == "2 GiB"
    assert format_size(5 << 40) == "5 TiB"


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
)
def test_a_container_limit_is_respected(tmp_path, names):
    for name, value in zip(names, ("1000000", "400000"), strict=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)
    assert free_memory_bytes(tmp_path) == 600_000
    assert total_memory_bytes(tmp_path) == 1_000_000


def test_no_container_limit_means_available_memory(tmp_path):
    (tmp_path / "memory.max").write_text("max")
    assert free_memory_bytes(tmp_path) > 1 << 20
    assert total_memory_bytes(tmp_path) >= free_memory_bytes(tmp_path)
