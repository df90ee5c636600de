"""The demonstration is a test of the whole: it ends with 0 only if everything it shows held."""

from __future__ import annotations

import pytest

from tests.support.daemon import twinvol


@pytest.mark.client("qemu-img", "mkfs.ext4")
@pytest.mark.slow
@pytest.mark.timeout(360)
def test_the_demonstration_holds():
    done = twinvol("demo", timeout_s=280)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
