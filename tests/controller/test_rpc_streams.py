"""What sidecars and the controller say to each other on the mutual TLS port: flows, policy, directory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.keys import make_csr, new_key
from certs.signing import verify_payload
from certs.svid import uid_of
from controller.rpc import gate
from graph.flow import Flow
from graph.model import Direction, Mode, Verdict
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import decode_snapshot, flow_to_message
from tests.controller.mesh import CART, FRONT, INVENTORY, REDIS, flow
from tests.controller.running import PolicyStream, Running, eventually, running, spiffe


def batch(sequence: int, flows: Sequence[Flow], boot_id: str = "boot-1", **changes: Any) -> pb.FlowBatch:
    return pb.FlowBatch(boot_id=boot_id, sequence=sequence, flows=[flow_to_message(each) for each in flows], **changes)


def seen(reporter: str = "cart-0", **changes: Any) -> Flow:
    now = time.time()
    return flow(FRONT, CART, **{"reporter": reporter, "first_seen": now, "last_seen": now, **changes})


async def read[T](call: Any, kind: type[T]) -> T:
    async with asyncio.timeout(20):
        message = await call.read()
    assert isinstance(message, kind), "the stream has ended"
    return message


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a stream ends, whatever it still says before."""
    async with asyncio.timeout(20):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code(), await call.details()


class TestTelemetry:
    async def test_batches_are_acknowledged_up_to_the_last_one_stored_and_counted_once(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            call = rpc.TelemetryStub(run.mutual(await run.join("shop/cart", "cart-0"))).ReportFlows()
            for sequence in (1, 2, 2):
                await call.write(batch(sequence, [seen()]))
                ack = await read(call, pb.FlowAck)
                assert (ack.boot_id, ack.sequence) == ("boot-1", sequence)
            graph = await run.get("/graph")
            (edge,) = graph["edges"]
            assert (edge["id"], edge["connections"]) == ("shop/front->shop/cart:8080/TCP", 10)
            assert edge["state"] == "proposed"  # its source has not said the same yet
            call.cancel()
        async with running(tmp_path) as run:
            assert (await run.get("/graph"))["edges"][0]["connections"] == 10

    async def test_flows_of_which_the_caller_is_no_end_are_not_counted(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            call = rpc.TelemetryStub(run.mutual(await run.join("shop/cart", "cart-0"))).ReportFlows()
            others = [
                flow(FRONT, REDIS, 6379, reporter="redis-0"),
                flow(FRONT, REDIS, 6379, reporter="cart-0"),
                seen(direction=Direction.OUTBOUND),
            ]
            await call.write(batch(1, others))
            assert (await read(call, pb.FlowAck)).sequence == 1
            assert (await run.get("/graph"))["edges"] == []
            assert (await run.get("/flows"))["flows"] == []
            assert run.controller.engine.view.sidecars["shop/cart-0"].refused == 3
            # and nobody speaks in another's name: the reporter is whoever the certificate says
            await call.write(batch(2, [seen(reporter="cart-1")]))
            await read(call, pb.FlowAck)
            assert [each["reporter"] for each in (await run.get("/flows"))["flows"]] == ["cart-0"]
            call.cancel()

    async def test_what_is_not_understood_refuses_the_whole_batch(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            stub = rpc.TelemetryStub(run.mutual(await run.join("shop/cart", "cart-0")))
            bad = batch(1, [seen(), seen()])
            bad.flows[1].verdict = "perhaps"
            for request, said in ((bad, "verdict"), (batch(1, [seen()], boot_id=""), "boot_id")):
                call = stub.ReportFlows()
                await call.write(request)
                code, message = await ended(call)
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert said in message
            assert (await run.get("/graph"))["edges"] == []


class TestPolicy:
    async def test_the_newest_snapshot_is_pushed_signed_and_the_next_one_only_after_the_answer(
        self, tmp_path: Path
    ) -> None:
        async with running(tmp_path) as run, PolicyStream(run.mutual(await run.join("shop/cart", "cart-0"))) as stream:
            push = await stream.push()
            signed = push.snapshot
            verify_payload(signed.payload, signed.signature, signed.signer_chain_der, run.bundle, time.time())
            first = decode_snapshot(signed.payload)
            assert (first.workload, first.inbound_mode) == (CART, Mode.LEARN)

            # two changes while the sidecar has not answered: it gets the last one alone
            engine = run.controller.engine
            await engine.set_mode(CART, None, Mode.AUDIT, None, "anna", "test")
            await engine.set_mode(CART, None, Mode.ENFORCE, None, "anna", "test")
            await stream.ack(push, first.version)
            push = await stream.push()
            second = decode_snapshot(push.snapshot.payload)
            assert (second.inbound_mode, second.version) == (Mode.ENFORCE, first.version + 2)
            await stream.ack(push, second.version)
            await eventually(lambda: engine.view.sidecars["shop/cart-0"].held_version == second.version)
            (sidecar,) = (await run.get("/status"))["sidecars"]
            assert (sidecar["instance"], sidecar["connected"], sidecar["nack"]) == ("cart-0", True, "")

    async def test_a_nack_is_shown_with_the_version_that_was_pushed(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run, PolicyStream(run.mutual(await run.join("shop/cart", "cart-0"))) as stream:
            push = await stream.push()
            version = decode_snapshot(push.snapshot.payload).version
            await stream.nack(push, 0, "rules[1]: unknown\x1b[2Jeffect")
            await eventually(lambda: run.controller.engine.view.sidecars["shop/cart-0"].nack)
            (sidecar,) = (await run.get("/status"))["sidecars"]
            assert sidecar["nack"] == f"version {version}: rules[1]: unknown [2Jeffect"
            assert sidecar["held_version"] == 0

    @pytest.mark.parametrize("answer", ["nonce", "version", "hello", "silence"])
    async def test_an_answer_to_something_else_ends_the_stream(
        self, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with running(tmp_path) as run:
            async with PolicyStream(run.mutual(await run.join("shop/cart", "cart-0"))) as stream:
                push = await stream.push()
                version = decode_snapshot(push.snapshot.payload).version
                match answer:
                    case "nonce":
                        await stream.ack(pb.PolicyPush(nonce="another"), version)
                    case "version":
                        await stream.ack(push, version + 1)
                    case "hello":
                        await stream.call.write(pb.PolicyRequest(hello=pb.PolicyHello(boot_id="x")))
                    case "silence":
                        await stream.call.done_writing()
                if answer == "silence":
                    async with asyncio.timeout(20):
                        assert await stream.call.read() is grpc.aio.EOF
                else:
                    assert (await ended(stream.call))[0] is grpc.StatusCode.INVALID_ARGUMENT
            await eventually(lambda: not run.controller.engine.view.sidecars["shop/cart-0"].connected)

    async def test_the_stream_begins_with_a_hello(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            stub = rpc.PolicyStub(run.mutual(await run.join("shop/cart", "cart-0")))
            for request, said in (
                (pb.PolicyRequest(ack=pb.PolicyAck(nonce="x")), "must be a hello"),
                (pb.PolicyRequest(hello=pb.PolicyHello()), "boot_id"),
            ):
                call = stub.Watch()
                await call.write(request)
                code, message = await ended(call)
                assert (code, said in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)

    async def test_a_newer_stream_of_the_same_boot_replaces_the_older_and_stays_connected(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            channel = run.mutual(await run.join("shop/cart", "cart-0"))
            async with PolicyStream(channel) as older, PolicyStream(channel) as newer:
                streams = [older, newer]
                codes = await asyncio.gather(*(self._acknowledging(stream) for stream in streams))
                # Which of the two hellos came first is the network's to say; exactly one stream is left. gRPC's client
                # calls an end that comes while it writes an internal one, whatever the server said.
                assert codes.count(None) == 1
                assert set(codes) - {None} <= {grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL}
                assert run.controller.engine.view.sidecars["shop/cart-0"].connected

    async def _acknowledging(self, stream: PolicyStream) -> grpc.StatusCode | None:
        try:
            push = await stream.call.read()
            if push is grpc.aio.EOF:
                return await stream.call.code()
            await stream.ack(push, decode_snapshot(push.snapshot.payload).version)
            async with asyncio.timeout(1):
                return await stream.call.code()
        except grpc.aio.AioRpcError as error:
            return error.code()
        except TimeoutError:
            return None

    async def test_what_was_signed_is_kept_while_somebody_is_told_of_it_and_no_longer(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            first, second = [run.mutual(await run.join("shop/cart", f"cart-{n}")) for n in range(2)]
            async with PolicyStream(first) as one:
                await one.push()
                async with PolicyStream(second) as other:
                    await other.push()
                    assert len(run.controller.signed) == 1, "once for all replicas"
                await eventually(lambda: not run.controller.engine.view.sidecars["shop/cart-1"].connected)
                assert len(run.controller.signed) == 1
            await eventually(lambda: len(run.controller.signed) == 0)

    async def test_an_override_is_in_the_sidecars_hands_when_the_call_answers(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            streams = {}
            for workload, instance in (("shop/front", "front-0"), ("data/redis", "redis-0")):
                stream = PolicyStream(run.mutual(await run.join(workload, instance)))
                await stream.__aenter__()
                streams[workload] = asyncio.create_task(self._follow(stream))
            await eventually(lambda: sum(each.held_version > 0 for each in self._sidecars(run)) == 2)
            body = {
                "effect": "deny",
                "from": "shop/front",
                "to": "data/redis",
                "port": 6379,
                "owner": "anna",
                "reason": "x",
            }
            made = await run.post("/overrides", body | {"expires_in": 60}, 201)
            assert made["pushed"] is True
            view = run.controller.engine.view
            for sidecar in self._sidecars(run):
                assert sidecar.held_version == view.snapshots[sidecar.workload].version
                assert any(rule.id == made["override"]["id"] for rule in view.snapshots[sidecar.workload].rules)
            for task in streams.values():
                task.cancel()
            await asyncio.gather(*streams.values(), return_exceptions=True)

    async def test_a_silent_sidecar_makes_the_call_say_that_it_was_not_pushed(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run, PolicyStream(run.mutual(await run.join())) as stream:
            await stream.push()
            body = {
                "effect": "deny",
                "from": "shop/front",
                "to": "data/redis",
                "port": None,
                "owner": "anna",
                "reason": "x",
            }
            made = await run.post("/overrides", body | {"expires_in": None, "wait": 0.05}, 201)
            assert made["pushed"] is False

    def _sidecars(self, run: Running) -> Any:
        return run.controller.engine.view.sidecars.values()

    async def _follow(self, stream: PolicyStream) -> None:
        while True:
            push = await stream.push()
            await stream.ack(push, decode_snapshot(push.snapshot.payload).version)


class TestDirectory:
    async def test_a_service_resolves_to_the_instances_behind_it(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            stub = rpc.DirectoryStub(run.mutual(await run.join()))
            answer = await stub.Resolve(pb.ResolveRequest(address="10.1.0.1", port=80, protocol="TCP"))
            assert (answer.workload, answer.service, answer.meshed) == ("shop/cart", "shop/cart", True)
            assert [(each.address, each.port, each.identity) for each in answer.endpoints] == [
                ("10.0.0.2", 8080, str(spiffe(CART))),
                ("10.0.0.3", 8080, str(spiffe(CART))),
            ]
            unknown = await stub.Resolve(pb.ResolveRequest(address="192.0.2.1", port=443, protocol="TCP"))
            assert (unknown.workload, list(unknown.endpoints)) == ("", [])

    @pytest.mark.parametrize(
        ("request_", "field"),
        [
            (pb.ResolveRequest(address="cart", port=80, protocol="TCP"), "address"),
            (pb.ResolveRequest(address="10.1.0.1", port=0, protocol="TCP"), "port"),
            (pb.ResolveRequest(address="10.1.0.1", port=80, protocol="QUIC"), "protocol"),
        ],
    )
    async def test_a_question_that_makes_no_sense_names_the_field(
        self, tmp_path: Path, request_: pb.ResolveRequest, field: str
    ) -> None:
        async with running(tmp_path) as run:
            stub = rpc.DirectoryStub(run.mutual(await run.join()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Resolve(request_)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (caught.value.details() or "").startswith(f"{field}: ")

    async def test_a_watch_tells_of_changes_to_what_is_watched_and_of_nothing_else(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            call = rpc.DirectoryStub(run.mutual(await run.join())).Watch()
            cart = pb.ResolveRequest(address="10.1.0.1", port=80, protocol="TCP")
            redis = pb.ResolveRequest(address="10.0.0.4", port=6379, protocol="TCP")
            legacy = pb.ResolveRequest(address="10.0.0.5", port=25, protocol="TCP")
            for target in (cart, redis, legacy):
                await call.write(pb.WatchRequest(target=target))
            first = [await read(call, pb.Destination) for _ in range(3)]
            assert {answer.workload for answer in first} == {"shop/cart", "data/redis", "data/legacy"}
            await call.write(pb.WatchRequest(target=legacy, remove=True))

            # cart-1 and legacy-0 go, redis stays as it is: one answer, about the cart
            lines = [line for line in INVENTORY.splitlines() if "cart-1" not in line and "legacy-0" not in line]
            run.settings.inventory.write_text("\n".join(lines))
            changed = await read(call, pb.Destination)
            assert (changed.workload, [each.instance for each in changed.endpoints]) == ("shop/cart", ["cart-0"])
            assert changed.version > first[0].version
            # what comes next is the answer to the next question, so nothing was said about the others
            await call.write(pb.WatchRequest(target=redis))
            assert (await read(call, pb.Destination)).workload == "data/redis"
            call.cancel()

    async def test_streams_of_one_instance_are_bounded(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            stub = rpc.DirectoryStub(run.mutual(await run.join()))
            target = pb.WatchRequest(target=pb.ResolveRequest(address="10.0.0.4", port=6379, protocol="TCP"))
            calls = []
            for _ in range(gate.MAX_STREAMS):
                calls.append(stub.Watch())
                await calls[-1].write(target)
                await read(calls[-1], pb.Destination)
            assert (await ended(stub.Watch()))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            calls.pop().cancel()

            async def opens() -> bool:
                call = stub.Watch()
                await call.write(target)
                try:
                    return await call.read() is not grpc.aio.EOF
                except grpc.aio.AioRpcError:
                    return False

            async with asyncio.timeout(20):
                while not await opens():  # each look is a call that the controller answers
                    pass
            for call in calls:
                call.cancel()


class TestEnds:
    async def test_a_stream_ends_with_its_certificate(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            short = run.forge(spiffe(FRONT, "front"), "front-0", lifetime=3)
            call = rpc.DirectoryStub(run.mutual(short)).Watch()
            target = pb.ResolveRequest(address="10.0.0.4", port=6379, protocol="TCP")
            await call.write(pb.WatchRequest(target=target))
            code, message = await ended(call)
            assert (code, "certificate has ended" in message) == (grpc.StatusCode.UNAUTHENTICATED, True)

    async def test_streams_of_an_instance_end_when_it_leaves_the_inventory(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            cart = rpc.DirectoryStub(run.mutual(await run.join("shop/cart", "cart-1"))).Watch()
            front = rpc.DirectoryStub(run.mutual(await run.join())).Watch()
            target = pb.WatchRequest(target=pb.ResolveRequest(address="10.0.0.3", port=8080, protocol="TCP"))
            for call in (cart, front):
                await call.write(target)
                await read(call, pb.Destination)
            run.settings.inventory.write_text(
                "\n".join(line for line in INVENTORY.splitlines() if "cart-1" not in line)
            )
            assert (await ended(cart))[0] is grpc.StatusCode.PERMISSION_DENIED
            assert (await read(front, pb.Destination)).workload == ""  # it goes on, and hears of the change
            front.cancel()

    async def test_streams_of_an_instance_end_when_another_has_its_name_and_its_certificate_is_renewed_no_more(
        self, tmp_path: Path
    ) -> None:
        def known(uid: str) -> str:
            return INVENTORY.replace("address: 10.0.0.3}", f"address: 10.0.0.3, uid: {uid}}}")

        (tmp_path / "inventory.yaml").write_text(known("first"))
        async with running(tmp_path) as run:
            held = await run.join("shop/cart", "cart-1")
            call = rpc.DirectoryStub(run.mutual(held)).Watch()
            await call.write(pb.WatchRequest(target=pb.ResolveRequest(address="10.0.0.3", port=8080, protocol="TCP")))
            await read(call, pb.Destination)
            renewed = await rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))
            assert uid_of(renewed.chain_der[0]) == "first"
            run.settings.inventory.write_text(known("second"))
            code, message = await ended(call)
            assert (code, "of an earlier 'cart-1'" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
            with pytest.raises(grpc.aio.AioRpcError, match="of an earlier 'cart-1'"):
                await rpc.IssuerStub(run.mutual(held)).Sign(pb.SignRequest(csr_der=make_csr(new_key())))

    async def test_verdicts_are_told_apart(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            call = rpc.TelemetryStub(run.mutual(await run.join("shop/cart", "cart-0"))).ReportFlows()
            denied = seen(verdict=Verdict.DENY, reason="no-rule", connections=2)
            await call.write(batch(1, [denied]))
            await read(call, pb.FlowAck)
            (found,) = (await run.get("/flows", verdict="deny"))["flows"]
            assert (found["connections"], found["reporter"], found["reason"]) == (2, "cart-0", "no-rule")
            assert (await run.get("/flows", verdict="allow"))["flows"] == []
            call.cancel()
