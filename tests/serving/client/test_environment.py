"""Where compiled kernels are kept: in a folder of the user's own, because they are pickles."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from evenflow.base.errors import ConfigError
from evenflow.serving.client.environment import default_adapter_cache, default_cache_dir, engine_environment, make_private
from evenflow.serving.config.engine_config import EngineConfig


def test_without_a_home_the_caches_are_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"evenflow-{os.getuid()}"
    assert default_cache_dir({}).parent == own
    assert default_adapter_cache({}).parent == own
    assert default_cache_dir({"HOME": "/home/u"}).parent == Path("/home/u/.cache/evenflow")
    assert default_cache_dir({"HOME": "/home/u", "XDG_CACHE_HOME": "/cache"}).parent == Path("/cache/evenflow")
    for _ in range(2):
        make_private(default_cache_dir({}), "--cache-dir")
    assert stat.S_IMODE(own.stat().st_mode) & 0o022 == 0
    assert stat.S_IMODE(default_cache_dir({}).stat().st_mode) == 0o700


def test_the_engine_is_told_the_folder_that_was_checked(tmp_path):
    config = EngineConfig(model=tmp_path, cache_dir=tmp_path / "kernels")
    assert engine_environment(config, {"NUMBA_CACHE_DIR": "/other"})["NUMBA_CACHE_DIR"] == str(tmp_path / "kernels")
    config = EngineConfig(model=tmp_path)
    assert engine_environment(config, {"NUMBA_CACHE_DIR": "/other"})["NUMBA_CACHE_DIR"] == "/other"


@pytest.mark.parametrize("place", ["itself", "above", "by a link"])
def test_a_folder_that_others_may_fill_is_refused(tmp_path, place):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(open_to_all)
    folder = {"itself": open_to_all, "above": open_to_all / "cache", "by a link": tmp_path / "link"}[place]
    with pytest.raises(ConfigError, match=r"others may write to .*open; name a folder of your own \(--cache-dir\)"):
        make_private(folder, "--cache-dir")
    open_to_all.chmod(0o1777)  # as /tmp is: nobody can put another one in the place of somebody's folder there
    make_private(open_to_all / "own", "--cache-dir")
    with pytest.raises(ConfigError, match="others may write to"):
        make_private(open_to_all, "--cache-dir")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("place", ["itself", "above"])
def test_a_folder_of_another_user_is_refused(tmp_path, place):
    theirs = tmp_path / "evenflow-0"  # somebody was there first
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(ConfigError, match=r"another user owns .*evenflow-0"):
        make_private(theirs / "numba" if place == "above" else theirs, "--cache-dir")


def test_a_folder_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/cache cannot be used: Not a directory; name another folder"):
        make_private(tmp_path / "file" / "cache", "--cache-dir")
