"""Settings: addresses, portal groups, the file."""

from pathlib import Path

import pytest

from engine.errors import InvalidArgument
from iscsi.chap import DEFAULT_ALGORITHMS, Algorithm
from twinvol import config


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("127.0.0.1:3260", ("127.0.0.1:3260", 1)),
        ("[::1]:0,2", ("[::1]:0", 2)),
        ("host.example:3260,65535", ("host.example:3260", 65535)),
        ("0.0.0.0:3260,0", ("0.0.0.0:3260", 0)),
    ],
)
def test_portals(text, meaning):
    assert config.parse_portal(text) == meaning


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:1,", "127.0.0.1:1,x", "127.0.0.1:1,65536", "::1:3260", ",1"])
def test_what_is_no_portal(text):
    with pytest.raises(InvalidArgument):
        config.parse_portal(text)


def test_portal_groups_in_the_file(tmp_path: Path):
    path = tmp_path / "twinvol.toml"
    path.write_text('iscsi = ["10.0.0.1:3260", "10.0.1.1:3260,2"]\n')
    assert config.load(path).iscsi == ("10.0.0.1:3260", "10.0.1.1:3260,2")
    path.write_text('iscsi = ["10.0.0.1:3260,-2"]\n')
    with pytest.raises(InvalidArgument):
        config.load(path)


@pytest.mark.parametrize("setting", ["busy_poll_us = -1", "busy_poll_us = 1001", "workers = 0", "workers = 65"])
def test_numbers_out_of_their_range_are_refused(tmp_path: Path, setting):
    path = tmp_path / "twinvol.toml"
    path.write_text(f"{setting}\n")
    with pytest.raises(InvalidArgument, match=setting.partition(" ")[0]):
        config.load(path)


def test_chap_algorithms(tmp_path: Path):
    path = tmp_path / "twinvol.toml"
    assert config.Settings().algorithms() == DEFAULT_ALGORITHMS
    path.write_text('chap_algorithms = ["SHA-1", "MD5"]\n')
    assert config.load(path).algorithms() == {Algorithm.SHA1, Algorithm.MD5}
    for names in ('["SHA-2"]', "[]", '["md5"]'):
        path.write_text(f"chap_algorithms = {names}\n")
        with pytest.raises(InvalidArgument, match="SHA3-256"):
            config.load(path)
