"""Who answers where: asked once, watched, bounded, and kept while the controller is away.

Over 400 lines: one client and one controller that plays all parts, asked for each rule of the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from graph.directory import Destination, Endpoint
from graph.model import Transport
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_to_message
from sidecar import directory_file
from sidecar.directory import DirectoryClient
from sidecar.directory_settings import DirectorySettings
from sidecar.errors import Unresolved
from sidecar.state import DIRECTORY
from tests.sidecar.destinations import MOVED, PAYMENT, Clock
from tests.sidecar.fake_controller import ADDRESS, INSTANCE, WORKLOAD, running, until


def client_of(joined, clock=None, resolve_timeout=0.2, **settings):
    bounds = DirectorySettings(**settings)
    return DirectoryClient(WORKLOAD, INSTANCE, (ADDRESS,), joined.state, clock or Clock(), bounds, resolve_timeout)


def keeping(joined, client):
    return running(joined.link.keep("directory", client.session, client.lost))


async def test_an_answer_is_asked_for_once_and_kept(controller, joined):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    assert client.cached("10.77.0.9", 443) is None
    async with keeping(joined, client):
        assert await client.resolve("10.77.0.9", 443) == PAYMENT
        assert client.cached("10.77.0.9", 443) == PAYMENT
        assert await client.resolve("10.77.0.9", 443) == PAYMENT
    assert controller.asked == [("10.77.0.9", 443)]


async def test_many_questions_at_once_are_one(controller, joined):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        answers = await asyncio.gather(*(client.resolve("10.77.0.9", 443) for _ in range(50)))
    assert answers == [PAYMENT] * 50
    assert controller.asked == [("10.77.0.9", 443)]


async def test_changes_arrive_without_asking(controller, joined):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        controller.answer(MOVED)
        await until(lambda: client.cached("10.77.0.9", 443) == MOVED)
    assert len(controller.asked) == 1


async def test_an_address_outside_the_inventory_is_an_answer_too(controller, joined):
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        answer = await client.resolve("192.0.2.7", 25)
    assert answer.workload is None
    assert not answer.meshed


async def test_no_answer_is_unresolved_and_a_late_one_is_kept(controller, joined):
    controller.silent_directory = True
    client = client_of(joined)
    async with keeping(joined, client):
        with pytest.raises(Unresolved, match=r"10\.77\.0\.9:443: the controller"):
            await client.resolve("10.77.0.9", 443)
        assert client.cached("10.77.0.9", 443) is None
        await until(lambda: controller.asked)
        controller.answer(PAYMENT)
        await until(lambda: client.cached("10.77.0.9", 443) == PAYMENT)


async def test_what_is_no_address_is_unresolved(joined):
    with pytest.raises(Unresolved, match="not an IP address"):
        await client_of(joined).resolve("payment.shop", 443)


async def test_one_that_gives_up_does_not_take_the_answer_from_the_others(controller, joined):
    controller.silent_directory = True
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        impatient = asyncio.ensure_future(client.resolve("10.77.0.9", 443))
        patient = asyncio.ensure_future(client.resolve("10.77.0.9", 443))
        await until(lambda: controller.asked)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        controller.answer(PAYMENT)
        assert await patient == PAYMENT


async def test_our_own_addresses_are_answered_here(joined):
    client = client_of(joined)
    answer = await client.resolve(ADDRESS, 8080)
    assert answer == client.cached(ADDRESS, 8080)
    assert answer.workload == WORKLOAD
    assert not answer.meshed  # the connection stays in the pod: nobody else could answer it
    assert [(end.address, end.port) for end in answer.endpoints] == [(ADDRESS, 8080)]
    assert client.entries == 0


async def test_everything_is_asked_for_again_after_a_reconnect(controller, joined):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        await client.resolve("192.0.2.7", 25)
        await controller.stop()
        await until(lambda: not client.connected)
        assert client.cached("10.77.0.9", 443) == PAYMENT  # the last answer holds
        assert await client.resolve("10.77.0.9", 443) == PAYMENT
        controller.asked.clear()
        controller.destinations[("10.77.0.9", 443)] = MOVED
        await controller.start()
        await until(lambda: client.cached("10.77.0.9", 443) == MOVED)
        assert sorted(controller.asked) == [("10.77.0.9", 443), ("192.0.2.7", 25)]


async def test_what_is_not_used_is_let_go_and_the_controller_is_told(controller, joined):
    clock = Clock()
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10, clock=clock, idle=600)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        await client.resolve("192.0.2.7", 25)
        clock.now = 500
        assert client.cached("10.77.0.9", 443)  # a use
        clock.now = 700
        client.release_idle()
        assert client.entries == 1
        await until(lambda: controller.released == [("192.0.2.7", 25)])
        assert client.cached("192.0.2.7", 25) is None


async def test_the_number_of_addresses_is_bounded_by_letting_the_least_used_go(controller, joined):
    clock = Clock()
    client = client_of(joined, resolve_timeout=10, clock=clock, addresses=3)
    async with keeping(joined, client):
        for number in range(1, 6):
            clock.now = number
            await client.resolve(f"192.0.2.{number}", 80)
        assert client.entries == 3
        await until(lambda: controller.released == [("192.0.2.1", 80), ("192.0.2.2", 80)])


async def test_too_many_open_questions_are_refused(controller, joined):
    controller.silent_directory = True
    client = client_of(joined, resolve_timeout=10, addresses=2)
    async with running(client.resolve("192.0.2.1", 80), client.resolve("192.0.2.2", 80)):
        await until(lambda: client.entries == 2)
        with pytest.raises(Unresolved, match="2 addresses wait"):
            await client.resolve("192.0.2.3", 80)


async def test_what_waits_is_not_pushed_out_by_what_comes(controller, joined):
    controller.silent_directory = True
    clock = Clock()
    client = client_of(joined, resolve_timeout=10, clock=clock, addresses=3, waiting=2)
    async with keeping(joined, client):
        waiting = asyncio.ensure_future(client.resolve("192.0.2.1", 80))
        await until(lambda: controller.asked)
        controller.silent_directory = False
        for number in range(2, 7):
            clock.now = number
            await client.resolve(f"192.0.2.{number}", 80)
        assert client.entries == 3
        await until(lambda: len(controller.released) == 3)
        assert ("192.0.2.1", 80) not in controller.released
        controller.answer(Destination("192.0.2.1", 80))
        assert await waiting == Destination("192.0.2.1", 80)


async def test_a_scan_is_held_to_what_may_wait(controller, joined):
    controller.silent_directory = True
    client = client_of(joined, resolve_timeout=10, waiting=5)
    async with keeping(joined, client):
        await until(lambda: client.connected)
        scan = [asyncio.ensure_future(client.resolve("192.0.2.1", port)) for port in range(1, 201)]
        await until(lambda: len(controller.asked) == 5)
        assert client.entries == 5
        assert sum(one.done() for one in scan) == 195, "the others were refused at once"
        for one in scan:
            one.cancel()
        await asyncio.gather(*scan, return_exceptions=True)


async def test_the_controller_is_asked_no_faster_than_it_may(controller, joined):
    """The clock stands: after the burst nothing is asked until it goes on."""
    clock = Clock()
    client = client_of(joined, resolve_timeout=10, clock=clock, waiting=5, per_second=100.0)
    async with keeping(joined, client):
        await until(lambda: client.connected)
        for port in range(1, 6):
            await client.resolve("192.0.2.1", port)
        more = [asyncio.ensure_future(client.resolve("192.0.2.1", port)) for port in range(6, 11)]
        await until(lambda: client.entries == 10)
        assert len(controller.asked) == 5
        clock.now = 0.02
        await asyncio.gather(*more[:2])
        assert len(controller.asked) == 7
        clock.now = 1.0
        await asyncio.gather(*more)


async def test_what_was_asked_before_is_asked_again_without_waiting(controller, joined):
    client = client_of(joined, resolve_timeout=10, waiting=2, per_second=0.001, addresses=100)
    async with keeping(joined, client):
        await until(lambda: client.connected)
        for port in (1, 2):
            await client.resolve("192.0.2.1", port)
        await controller.stop()
        await until(lambda: not client.connected)
        controller.asked.clear()
        await controller.start()
        await until(lambda: sorted(controller.asked) == [("192.0.2.1", 1), ("192.0.2.1", 2)])


async def test_a_question_that_is_let_go_is_unresolved(controller, joined):
    clock = Clock()
    client = client_of(joined, resolve_timeout=10, clock=clock)
    asking = asyncio.ensure_future(client.resolve("192.0.2.1", 80))
    await until(lambda: client.entries == 1)
    clock.now = 1e6
    client.release_idle()
    with pytest.raises(Unresolved):
        await asking


async def test_a_bad_answer_is_refused_and_the_last_one_stays(controller, joined, caplog):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        for queue in controller._directories:
            queue.put_nowait(pb.Destination(address="10.77.0.9", port=443, protocol="TCP", meshed=True))
        await until(lambda: "is refused" in caplog.text)
        assert client.cached("10.77.0.9", 443) == PAYMENT
        assert client.connected


# A controller that is broken, or was broken into --------------------------------------------------------------------


def large(number, endpoints, version=1):
    """:param version: with another one all endpoints are others, too"""
    identity, instance = PAYMENT.endpoints[0].identity, f"payment-{version}"
    found = tuple(
        Endpoint(f"10.{one >> 16}.{one >> 8 & 255}.{one & 255}", 8443, instance, identity) for one in range(endpoints)
    )
    return replace(PAYMENT, address=f"10.77.1.{number}", endpoints=found, version=version)


async def test_of_more_endpoints_than_are_held_the_answers_least_used_are_let_go(controller, joined, monkeypatch):
    monkeypatch.setattr("sidecar.directory.MOST_ENDPOINTS", 1000)
    client = client_of(joined, resolve_timeout=60)
    controller.answer(PAYMENT)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        for number in range(8):
            controller.answer(large(number, 300))
            await client.resolve(f"10.77.1.{number}", 443)
            assert sum(len(each.destination.endpoints) for each in client._entries.values()) <= 1000
        assert [client.cached(f"10.77.1.{number}", 443) is not None for number in range(8)] == [False] * 5 + [True] * 3
        controller.answer(large(7, 700, version=2))  # one that grows; it was used last of these
        await until(lambda: (found := client.cached("10.77.1.7", 443)) and found.version == 2)
        assert client._endpoints == 1000
        await until(lambda: ("10.77.1.5", 443) in controller.released)
        for key in list(client._entries):
            client._release(key)
        assert client._endpoints == 0


async def test_answers_without_end_get_their_share_of_the_time(controller, joined, monkeypatch):
    monkeypatch.setattr("sidecar.directory.ANSWERING_BURST", 0.05)
    rests = []

    async def rest(seconds):
        rests.append(seconds)
        await asyncio.sleep(0)

    client = client_of(joined, resolve_timeout=60)
    controller.answer(large(1, 2000))
    async with keeping(joined, client):
        await client.resolve("10.77.1.1", 443)
        monkeypatch.setattr("sidecar.directory._rest", rest)
        for version in range(2, 22):
            controller.answer(large(1, 2000, version))
        await until(lambda: client.cached("10.77.1.1", 443).version == 21)
    assert rests
    assert rests[-1] > 0
    controller.answer(PAYMENT)


# After a restart ------------------------------------------------------------------------------------------------------


async def run_once(controller, joined):
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        await client.resolve("10.77.0.9", 443)
        await client.persist()
    return client


async def test_the_last_answers_are_used_after_a_restart_without_controller(controller, joined):
    await run_once(controller, joined)
    await controller.stop()
    client = client_of(joined, resolve_timeout=10)
    client.restore()
    assert client.cached("10.77.0.9", 443) is None  # not before it is known that nobody answers
    async with keeping(joined, client):
        assert await client.resolve("10.77.0.9", 443) == PAYMENT
        controller.destinations[("10.77.0.9", 443)] = MOVED
        await controller.start()
        await until(lambda: client.cached("10.77.0.9", 443) == MOVED)


async def test_what_the_last_run_did_not_know_stays_unresolved(controller, joined):
    await run_once(controller, joined)
    await controller.stop()
    client = client_of(joined)
    client.restore()
    async with keeping(joined, client):
        with pytest.raises(Unresolved, match="is away"):
            await client.resolve("10.77.0.10", 443)


async def test_with_the_controller_there_the_last_answers_do_not_count(controller, joined):
    await run_once(controller, joined)
    controller.destinations[("10.77.0.9", 443)] = MOVED
    client = client_of(joined, resolve_timeout=10)
    client.restore()
    async with keeping(joined, client):
        assert await client.resolve("10.77.0.9", 443) == MOVED


async def test_a_run_that_never_reached_the_controller_keeps_what_the_last_one_knew(controller, joined):
    await run_once(controller, joined)
    client = client_of(joined)
    client.restore()
    await client.persist()
    again = client_of(joined)
    again.restore()
    assert {key: kept.destination for key, kept in again._stored.items()} == {("10.77.0.9", 443): PAYMENT}


def service(number, **changes):
    endpoint = Endpoint(f"10.88.0.{number}", 443, identity=PAYMENT.endpoints[0].identity)
    return Destination(
        f"10.77.0.{number}", 443, workload=PAYMENT.workload, meshed=True, endpoints=(replace(endpoint, **changes),)
    )


async def test_a_subscriber_that_fails_keeps_an_answer_from_nobody(controller, joined, caplog):
    controller.answer(service(1))
    client = client_of(joined, resolve_timeout=10)
    told = []

    def broken(*_):
        raise ValueError("a fault")

    client.subscribe(broken)
    client.subscribe(lambda *answer: told.append(answer))
    async with keeping(joined, client):
        assert await client.resolve("10.77.0.1", 443) == service(1)
        assert client.connected
    assert told == [("10.77.0.1", 443, service(1))]
    assert "a subscriber failed on an answer" in caplog.text


async def test_what_is_in_use_is_what_has_tunnels_and_was_used_last(controller, joined):
    other_mesh, outside = service(3, transport=Transport.MTLS), Destination("192.0.2.7", 25)
    for one in (service(1), service(2), other_mesh):
        controller.answer(one)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        for one in (service(1), service(2), other_mesh, outside):
            await client.resolve(one.address, one.port)
        assert client.in_use(9) == [("10.77.0.2", 443), ("10.77.0.1", 443)]
        client.cached("10.77.0.1", 443)
        assert client.in_use(9) == [("10.77.0.1", 443), ("10.77.0.2", 443)]
        assert client.in_use(1) == [("10.77.0.1", 443)]
        assert client.in_use(0) == []
        await client.persist()
    again = client_of(joined)
    assert again.in_use(9) == []
    again.restore()
    assert again.in_use(9) == [("10.77.0.1", 443), ("10.77.0.2", 443)]
    await again.persist()
    again.restore()
    assert again.in_use(9) == [("10.77.0.1", 443), ("10.77.0.2", 443)]
    async with keeping(joined, again):
        await again.resolve("10.77.0.2", 443)
        assert again.in_use(9) == [("10.77.0.2", 443)], "the controller was reached: the last run is over"


async def test_of_more_than_a_file_may_hold_what_was_used_last_is_kept(controller, joined, monkeypatch):
    for number in range(1, 10):
        controller.answer(service(number))
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client):
        for number in range(1, 10):
            await client.resolve(f"10.77.0.{number}", 443)
        one = len(directory_file.encode([destination_to_message(service(1)).SerializeToString()]))
        monkeypatch.setattr("sidecar.directory_file.MAX_STATE_BYTES", directory_file.SPARE + 3 * one + one // 2)
        await client.persist()
    again = client_of(joined)
    again.restore()
    assert again.in_use(9) == [("10.77.0.9", 443), ("10.77.0.8", 443), ("10.77.0.7", 443)]


@pytest.mark.parametrize("damage", [b"", b"\0\0", b"\0\0\0\x05ab", b"\0\0\0\x02\xff\xff", b"\0\0\0\x02\x10\x01"])
async def test_damaged_answers_are_not_used(joined, caplog, damage):
    joined.state.write_checked(DIRECTORY, damage)
    client = client_of(joined)
    client.restore()
    assert client._stored == {}
    assert ("not used" in caplog.text) == bool(damage)


async def test_a_file_that_was_changed_is_not_used(controller, joined, caplog):
    await run_once(controller, joined)
    path = joined.settings.state_dir / DIRECTORY
    path.write_bytes(path.read_bytes().replace(b"payment", b"paymenu"))
    client = client_of(joined)
    client.restore()
    assert client._stored == {}
    assert "damaged" in caplog.text


async def test_upkeep_writes_what_changed(controller, joined, monkeypatch):
    monkeypatch.setattr("sidecar.directory.UPKEEP_INTERVAL", 0.01)
    controller.answer(PAYMENT)
    client = client_of(joined, resolve_timeout=10)
    async with keeping(joined, client), running(client.upkeep()):
        await client.resolve("10.77.0.9", 443)
        await until(lambda: joined.state.read_checked(DIRECTORY))
