"""iSCSI URLs."""

import pytest

from engine.errors import InvalidArgument
from iscsi.initiator import IscsiUrl

IQN = "iqn.2026-11.org.twinvol:vm1"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (f"iscsi://127.0.0.1/{IQN}/0", IscsiUrl("127.0.0.1", 3260, IQN, 0)),
        (f"iscsi://storage.example:3261/{IQN}/17", IscsiUrl("storage.example", 3261, IQN, 17)),
        (f"iscsi://[2001:db8::1]:3260/{IQN}/1", IscsiUrl("2001:db8::1", 3260, IQN, 1)),
        ("iscsi://host/iqn.2026-11.org.twinvol%3Avm1/0", IscsiUrl("host", 3260, IQN, 0)),
        (f"iscsi://alice@host/{IQN}/0", IscsiUrl("host", 3260, IQN, 0, "alice")),
        (f"iscsi://iqn.1993-08.org.debian@[::1]:1/{IQN}/0", IscsiUrl("::1", 1, IQN, 0, "iqn.1993-08.org.debian")),
    ],
)
def test_urls(text, url):
    assert IscsiUrl.parse(text) == url
    assert IscsiUrl.parse(str(url)) == url


def test_a_secret_in_a_url_is_understood_and_never_shown():
    url = IscsiUrl.parse(f"iscsi://alice%se%cr@et@host/{IQN}/0")
    assert (url.host, url.user, url.secret) == ("host", "alice", "se%cr@et")
    assert str(url) == f"iscsi://alice@host:3260/{IQN}/0"
    assert "se%cr" not in repr(url)
    for bad in ("iscsi://alice%s3cret@host/x", "iscsi://alice:s3cret@host:x/t/0", "http://alice%s3cret@host/t/0"):
        with pytest.raises(InvalidArgument) as refused:
            IscsiUrl.parse(bad)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"http://h/{IQN}/0",
        f"iscsi:///{IQN}/0",
        f"iscsi://h/{IQN}",
        f"iscsi://h/{IQN}/",
        f"iscsi://h/{IQN}/x",
        f"iscsi://h/{IQN}/-1",
        f"iscsi://h/{IQN}/16384",
        "iscsi://h/0",
        "iscsi://h//0",
        f"iscsi://h/a/{IQN}/0",
        f"iscsi://@h/{IQN}/0",
        f"iscsi://user%@h/{IQN}/0",
        f"iscsi://%secret@h/{IQN}/0",
        f"iscsi://user:secret@h/{IQN}/0",
        f"iscsi://h:99999/{IQN}/0",
        f"iscsi://h:x/{IQN}/0",
        f"iscsi://[::1/{IQN}/0",
        f"iscsi://h/{IQN}/0?x=1",
    ],
)
def test_what_is_no_url(text):
    with pytest.raises(InvalidArgument):
        IscsiUrl.parse(text)
