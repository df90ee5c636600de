"""What may be chosen of a mirror: refused in one place, the same over the socket and in the catalogue."""

import dataclasses
import math

import pytest

from engine.api import CopyOrder, MirrorTerms
from engine.copy_state import CopyMode
from engine.errors import InvalidArgument
from engine.mirror_record import MirrorPolicy
from twinvol.api.methods import methods

ALL = MirrorTerms(
    "adaptive",
    rpo_s=5,
    points=3,
    points_age_s=3600.0,
    latency_budget_s=0.25,
    backlog_bytes=1 << 20,
    hold_down_s=0.0,
    failover=False,
    rate_bytes_s=1 << 20,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "often"},
        {"rpo_s": 0.99},
        {"rpo_s": 30 * 86_400 + 1},
        {"rpo_s": math.nan},
        {"points": 0},
        {"points": 1001},
        {"points_age_s": -1.0},
        {"latency_budget_s": 0.0},
        {"latency_budget_s": 60.1},
        {"latency_budget_s": math.inf},
        {"backlog_bytes": (1 << 20) - 1},
        {"backlog_bytes": (1 << 40) + 1},
        {"hold_down_s": -0.1},
        {"hold_down_s": 86_401.0},
        {"failed_copy_stops_host_io": True},
        {"rate_bytes_s": 1},
        {"rate_bytes_s": -(1 << 20)},
        {"mode": "sync", "rpo_s": 1.0},
    ],
)
def test_terms_that_make_no_sense_are_refused_where_they_are_made_and_at_the_socket(wrong):
    values = {"mode": "async", **wrong}
    with pytest.raises(InvalidArgument) as refused:
        MirrorTerms(**values)
    for verb in ("replica_create", "replica_attach", "group_replica_create"):
        params = {name: "x" for name in ("source", "name", "target", "group") if name in _names(verb)}
        with pytest.raises(InvalidArgument) as again:
            methods()[verb].parse_parameters(params | {"terms": values})
        if all(math.isfinite(value) for value in wrong.values() if isinstance(value, float)):  # else it is no JSON
            assert str(again.value) == str(refused.value)


@pytest.mark.parametrize("terms", [MirrorTerms(), ALL, MirrorTerms("sync", failed_copy_stops_host_io=True)])
def test_terms_are_the_same_at_the_other_end_of_the_socket_and_after_a_restart(terms):
    create = methods()["replica_create"]
    sent = create.bind(("v", "r", terms), {})
    assert create.parse_parameters(sent)["terms"] == terms
    order = CopyOrder("mirror", "v", terms=terms)
    assert CopyOrder.parse(dataclasses.asdict(order)) == order


def test_what_was_not_chosen_is_as_usual():
    assert MirrorPolicy.of(MirrorTerms("async")) == MirrorPolicy()
    kept = MirrorPolicy.of(ALL)
    assert (kept.rpo_s, kept.points_max, kept.points_age_s, kept.budget_s) == (5, 3, 3600.0, 0.25)
    assert (kept.backlog_bytes, kept.hold_down_s, kept.failover, kept.stops_host_io) == (1 << 20, 0.0, False, False)
    assert kept.rate_bytes_s == 1 << 20
    assert kept.with_terms(MirrorTerms("async")).rate_bytes_s == 1 << 20
    assert MirrorPolicy.of(MirrorTerms("sync", failed_copy_stops_host_io=True)).stops_host_io
    assert ALL.copy_mode is CopyMode.ADAPTIVE
    assert MirrorPolicy.parse(kept.serialize()) == kept


def test_a_policy_of_a_peers_is_held_to_the_same_limits():
    for wrong in ({"rpo_s": 0.5}, {"points_max": 0}, {"budget_s": 61.0}, {"hold_down_s": -1}, {"backlog_bytes": 1}):
        with pytest.raises(InvalidArgument):
            MirrorPolicy.parse(wrong).check()


def _names(verb: str) -> list[str]:
    return list(methods()[verb]._parameters)


def test_other_terms_of_a_synchronous_mirror_leave_it_stopping_its_hosts():
    policy = MirrorPolicy.of(MirrorTerms(failed_copy_stops_host_io=True))
    assert policy.with_terms(MirrorTerms(rate_bytes_s=4 << 20)).stops_host_io
    assert not policy.with_terms(MirrorTerms("async")).stops_host_io
    assert not MirrorPolicy().with_terms(MirrorTerms()).stops_host_io
