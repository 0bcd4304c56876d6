"""Sessions with the controller: begun again when lost, moved at a renewal, translated errors, no call left behind."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from certs.ca import CertificateAuthority
from certs.keys import make_csr, new_key
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.channel import attestation_channel, converse, translate, translated
from sidecar.errors import ControllerRefused, ControllerUnavailable
from sidecar.settings import Address
from tests.sidecar.fake_controller import running, snapshot, until


def rpc_error(code, details=""):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_is_one_of_two_things(code):
    error = translate(rpc_error(code, "two\nlines"))
    refused = {"INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION"}
    refused |= {"OUT_OF_RANGE", "UNIMPLEMENTED", "UNAUTHENTICATED"}
    assert isinstance(error, ControllerRefused if code.name in refused else ControllerUnavailable)
    assert "two lines" in str(error)
    assert getattr(error, "invalid", False) == (code is grpc.StatusCode.INVALID_ARGUMENT)


def test_a_bare_error_of_a_finished_call_is_translated():
    with pytest.raises(ControllerUnavailable), translated():
        raise asyncio.InvalidStateError("RPC already finished")


def test_our_own_faults_are_not_translated():
    with pytest.raises(KeyError), translated():
        raise KeyError("x")


def renew(controller, joined):
    key = new_key()
    held = joined.credentials.svid
    chain = controller.authority.sign_workload(make_csr(key), held.identity, time.time(), 3600).chain_der
    joined.credentials.replace(replace(held, chain_der=chain, key=key))


async def test_a_renewal_moves_every_session_and_closes_the_old_channel(controller, joined):
    channels = []

    async def session(given):
        channels.append(given.channel)
        await asyncio.Event().wait()

    lost = []
    keep = joined.link.keep
    async with running(keep("a", session, lambda: lost.append(1)), keep("b", session, lambda: lost.append(1))):
        await until(lambda: len(channels) == 2)
        assert channels[0] is channels[1]  # one connection for all
        renew(controller, joined)
        await until(lambda: len(channels) == 4)
        assert channels[2] is channels[3] is not channels[0]
        await until(lambda: not joined.link._closing)
        assert channels[0].get_state() is grpc.ChannelConnectivity.SHUTDOWN
        assert not lost


async def test_a_renewal_without_sessions_closes_the_channel_too(controller, joined):
    channels = []

    async def session(given):
        channels.append(given.channel)

    async with running(joined.link.keep("a", session)):
        await until(lambda: channels)
    renew(controller, joined)
    await until(lambda: not joined.link._closing)
    assert channels[0].get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_lost_session_begins_again_and_says_so_once(joined, caplog):
    caplog.set_level("INFO", "sidecar.channel")
    attempts = []

    async def session(given):
        attempts.append(1)
        if len(attempts) < 4:
            raise ControllerUnavailable("UNAVAILABLE: gone")
        given.established()
        await asyncio.Event().wait()

    lost = []
    joined.link.hurry()
    async with running(joined.link.keep("policy", session, lambda: lost.append(1))):
        await until(lambda: len(attempts) == 4)
    assert len(lost) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "policy: the controller is away: UNAVAILABLE: gone" in caplog.text
    assert "policy: connected to the controller again" in caplog.text


async def test_a_fault_of_ours_is_not_swallowed(joined):
    async def session(given):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await joined.link.keep("policy", session)


async def test_a_fault_of_the_writer_is_not_taken_for_an_end_of_the_call(controller, joined):
    controller.push(snapshot(1))

    async def session(given):
        call = rpc.PolicyStub(given.channel).Watch()

        async def ask():
            await call.write(pb.PolicyRequest(hello=pb.PolicyHello(boot_id="b")))
            raise ZeroDivisionError

        await converse(call, ask(), lambda push: None)

    with pytest.raises(ZeroDivisionError):
        await joined.link.keep("policy", session)


async def test_a_cancelled_session_ends_its_call_at_the_controller(controller, joined):
    controller.push(snapshot(1))
    taken = []

    async def session(given):
        call = rpc.PolicyStub(given.channel).Watch()

        async def ask():
            await call.write(pb.PolicyRequest(hello=pb.PolicyHello(boot_id="b")))
            await asyncio.Event().wait()

        await converse(call, ask(), taken.append)

    async with running(joined.link.keep("policy", session)):
        await until(lambda: taken)
        assert len(controller._pushes) == 1
    await until(lambda: not controller._pushes)


async def test_a_controller_without_our_trust_is_not_talked_to(controller, joined):
    """A server of another authority under the controller's address gets nothing, not even our certificate's name."""
    from tests.sidecar.fake_controller import FakeController

    await controller.stop()
    impostor = FakeController()
    impostor.controller = controller.controller
    async with impostor:
        seen = []

        async def session(given):
            try:
                with translated():
                    await rpc.IssuerStub(given.channel).Sign(pb.SignRequest(csr_der=b""), timeout=10)
            except ControllerUnavailable as error:
                seen.append(str(error))
                raise

        async with running(joined.link.keep("x", session)):
            await until(lambda: any("is not trusted" in text for text in seen))
    assert impostor.signatures == 0


async def test_a_failed_call_is_gone_with_its_channel_which_would_go_on_connecting():
    """Also before the garbage collector comes by: the controller must not be called by channels of the past."""
    bundle = CertificateAuthority.create("hedgerow.test", time.time()).bundle()
    gc.collect()
    gc.disable()
    try:
        async with attestation_channel(Address("127.0.0.1", 1), bundle) as channel:
            call = rpc.IssuerStub(channel).Sign(pb.SignRequest(csr_der=make_csr(new_key())), timeout=30)
            with pytest.raises(ControllerUnavailable, match="nothing listens there"), translated():
                await call
        held = weakref.ref(call)  # and it holds gRPC's own half of the channel
        del call
        await until(lambda: held() is None)
    finally:
        gc.enable()
