"""The rule of how long a tunnel may live, apart from tunnels: by table, and by random histories."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.spiffe import SpiffeId
from sidecar.dataplane.lease import LONGEST_WAIT, SHORTEST_WAIT, Lease, Leases, Proof, Shown, prove_after, retry_after

CART = SpiffeId.for_workload("hedgerow.test", "shop", "default", "cart")
FRONT = SpiffeId.for_workload("hedgerow.test", "shop", "default", "front")
BACK = SpiffeId.for_workload("hedgerow.test", "shop", "default", "back")


def proof(ours_end=100.0, peer_end=100.0, *, ours="cart-0", peer="front-0", who=FRONT, us=CART, place="10.0.0.1"):
    return Proof(Shown(us, ours, ours_end), Shown(who, peer, peer_end), place)


@pytest.mark.parametrize(("ours", "peer", "end"), [(100.0, 90.0, 90.0), (80.0, 90.0, 80.0), (70.0, 70.0, 70.0)])
def test_a_lease_ends_with_the_first_of_the_two_certificates(ours, peer, end):
    assert Lease.of(proof(ours, peer)).end == end


@pytest.mark.parametrize(
    ("fresh", "now", "end"),
    [
        pytest.param(proof(200.0, 200.0), 50.0, 200.0, id="both-renewed"),
        pytest.param(proof(200.0, 150.0), 50.0, 150.0, id="the-first-end-counts-again"),
        pytest.param(proof(200.0, 100.0), 50.0, 100.0, id="one-end-renewed-alone-proves-no-more"),
        pytest.param(proof(90.0, 90.0), 50.0, 100.0, id="older-certificates-take-nothing-away"),
        pytest.param(proof(200.0, 200.0), 99.9, 200.0, id="in-the-last-moment"),
        pytest.param(proof(200.0, 200.0), 100.0, 100.0, id="too-late"),
        pytest.param(proof(200.0, 200.0, who=BACK), 50.0, 100.0, id="another-identity"),
        pytest.param(proof(200.0, 200.0, peer="front-1"), 50.0, 100.0, id="another-instance"),
        pytest.param(proof(200.0, 200.0, us=BACK), 50.0, 100.0, id="we-are-another-identity"),
        pytest.param(proof(200.0, 200.0, ours="cart-1"), 50.0, 100.0, id="we-are-another-instance"),
        pytest.param(proof(200.0, 200.0, place="10.0.0.2"), 50.0, 100.0, id="another-place"),
        pytest.param(proof(200.0, 200.0, peer=""), 50.0, 100.0, id="no-instance"),
    ],
)
def test_who_extends_a_lease_and_how_far(fresh, now, end):
    lease = Lease.of(proof())
    extended = lease.extended(fresh, now)
    assert extended.end == end
    assert extended.proof == lease.proof
    assert (extended is lease) == (end == lease.end)


@pytest.mark.parametrize("anonymous", [{"peer": ""}, {"ours": ""}])
def test_what_names_no_instance_is_not_extended_by_its_like(anonymous):
    assert Lease.of(proof(**anonymous)).extended(proof(200.0, 200.0, **anonymous), 50.0).end == 100.0


ENDS = st.floats(1.0, 1000.0)
PROOFS = st.builds(
    proof,
    ENDS,
    ENDS,
    ours=st.sampled_from(["cart-0", "cart-1"]),
    peer=st.sampled_from(["front-0", "front-1", ""]),
    who=st.sampled_from([FRONT, BACK]),
    place=st.sampled_from(["10.0.0.1", "10.0.0.2"]),
)


@given(PROOFS, st.lists(st.tuples(st.floats(0.0, 50.0), PROOFS), max_size=20))
def test_a_lease_never_shrinks_and_never_passes_what_its_own_pair_has_proved(first, later):
    lease, now = Lease.of(first), 0.0
    for passed, fresh in later:
        now += passed
        before = lease
        lease = lease.extended(fresh, now)
        assert lease.end >= before.end
        if lease.end != before.end:
            assert now < before.end, "what is over stays over"
            assert fresh.pair == first.pair is not None
            assert lease.end == min(fresh.ours.not_after, fresh.peer.not_after)
    of_the_pair = [first.end, *(fresh.end for _, fresh in later if first.pair and fresh.pair == first.pair)]
    assert lease.end <= max(of_the_pair)


class Holder:
    def __init__(self, proof):
        self.lease = Lease.of(proof)
        self.extensions = 0

    def extend(self, lease):
        self.lease = lease
        self.extensions += 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 50.0), PROOFS), max_size=30), st.randoms())
def test_the_register_does_what_the_rule_does_to_each_tunnel_alone(history, random):
    """Against a model that shows every proof to every tunnel."""
    leases, live, now = Leases(), [], 0.0
    model: dict[Holder, Lease] = {}
    for leaves, passed, fresh in history:
        now += passed
        if leaves and live:
            gone = live.pop(random.randrange(len(live)))
            del model[gone]
            leases.leave(gone)
            leases.leave(gone)
        model = {holder: lease.extended(fresh, now) for holder, lease in model.items()}
        holder = Holder(fresh)
        leases.enter(holder, now)
        live.append(holder)
        model[holder] = holder.lease
        assert {holder: holder.lease for holder in live} == model
    for holder in live:
        leases.leave(holder)
    assert leases._groups == {}


def test_handshakes_without_newer_certificates_do_not_look_at_every_tunnel():
    class Counted(Holder):
        looks = 0

        @property
        def lease(self):
            Counted.looks += 1
            return self._lease

        @lease.setter
        def lease(self, value):
            self._lease = value

    leases = Leases()
    for _ in range(1000):
        leases.enter(Counted(proof()), 50.0)
    assert Counted.looks < 5000
    before = Counted.looks
    newer = Holder(proof(200.0, 200.0))
    leases.enter(newer, 50.0)
    assert Counted.looks - before >= 1000
    assert newer.extensions == 0


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.integers())
def test_a_pair_proves_itself_while_there_is_time_left(now, left, seed):
    wait = prove_after(now + left, now, Random(seed))
    assert wait >= SHORTEST_WAIT
    assert wait <= max(SHORTEST_WAIT, 0.86 * left + 1e-6)
    if left > 1:
        assert wait >= 0.69 * left
    retry = retry_after(now + left, now)
    assert SHORTEST_WAIT <= retry <= LONGEST_WAIT
    assert retry <= max(SHORTEST_WAIT, left / 8 + 1e-6)


def test_attempts_are_spread_and_few():
    waits = {prove_after(100.0, 0.0, Random(seed)) for seed in range(50)}
    assert max(waits) - min(waits) > 5
    now, attempts = 0.0, 0
    while now < 3600.0:
        now += retry_after(3600.0, now)
        attempts += 1
    assert attempts < 250


def test_a_proof_can_not_be_changed():
    with pytest.raises(AttributeError):
        proof().place = "10.0.0.9"
    assert replace(proof(), place="x").pair != proof().pair
