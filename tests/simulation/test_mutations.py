"""A quick part of the proof of the proof; ``make sim-mutations`` prints the whole table."""

import pytest

from tests.simulation.mutations import crashes_until_caught

QUICK = {
    "data-sync-before-commit": 300,
    "sync-of-commit-record": 300,
    "commit-covers-captured-set": 600,
    "group-flush-join": 300,
    "sticky-failure": 1500,
    "record-before-acknowledgement": 300,
    "publish-after-pwrite": 300,
    "one-writer-per-chunk": 300,
    "in-place-rule-fast-tier": 300,
    "in-place-rule-of-bursts": 300,
    "runs-are-adjacent": 300,
    "atomic-writes-redirect": 300,
    "seal-waits-for-old-epoch": 600,
    "seal-is-flushed": 300,
    "kill-rule": 300,
    "slots-are-counted": 300,
    "base-is-kept": 300,
    "old-partial-ends": 300,
    "partials-are-journaled": 300,
    "rows-end-with-their-chunk": 300,
    "shared-partials-redirect": 300,
    "walks-visit-both": 300,
    "whole-pages": 300,
    "chunk-outlives-its-own-claim": 300,
    "chunk-outlives-its-slots": 300,
    "share-is-journaled": 300,
    "slots-in-the-checkpoint": 300,
    "feature-before-first-share": 300,
    "pages-are-shadow-written": 300,
    "pages-outlive-their-superblock": 300,
    "leaves-are-counted": 600,
    "changed-nodes-are-captured": 300,
    "unloaded-when-written": 600,
    "leaves-are-read": 300,
    "leaves-are-verified": 300,
    "held-is-not-deleted": 300,
    "hold-is-journaled": 300,
    "hold-is-flushed": 600,
    "holds-in-the-checkpoint": 300,
    "digested-is-immutable": 300,
    "digested-is-immutable-after-opening": 300,
    "digest-dropped-when-freed": 300,
    "digest-of-frozen-bytes": 600,
    "ended-digests-in-the-checkpoint": 300,
    "runs-are-journaled": 300,
    "runs-end-what-was-there": 300,
    "pages-are-verified": 300,
    "commit-has-a-copy": 300,
    "either-copy-of-a-commit": 300,
    "either-superblock-slot": 300,
    "only-failed-syncs-are-told": 300,
    "freed-waits-for-durability": 600,
    "zero-fill": 300,
    "free-is-unknown-at-open": 300,
    "cut-at-open": 300,
    "soft-records-after-kill": 300,
    "incarnation": 600,
    "directory-sync": 300,
}
"""Those that are caught soon: name -> the crashes within which it must be."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_store_without_the_rule_is_caught(name):
    caught = crashes_until_caught(name, 1, QUICK[name])
    assert caught.failure is not None, f"{name} survived {caught.crashes} crashes"
