"""A policy that is wrong on its way: the sidecar keeps the last good one, and people are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graph.wire import hedgerow_pb2 as pb
from tests.bad_input.relay import Relay, Spoil, honest
from tests.bad_input.sidecars import Sidecar, echo_service
from tests.hedgerow.served import Served, hedgerow, served, until


def spoilt(relay: Relay) -> dict[str, Spoil]:
    """Ways to spoil a policy, by what the sidecar must say about it."""

    def changed(change: Any) -> Spoil:
        def spoil(signed: pb.SignedSnapshot) -> pb.SignedSnapshot:
            snapshot = pb.Snapshot.FromString(signed.payload)
            change(snapshot)
            return relay.signed(snapshot.SerializeToString())

        return spoil

    def flipped(signed: pb.SignedSnapshot) -> pb.SignedSnapshot:
        payload = bytearray(signed.payload)
        payload[len(payload) // 2] ^= 1
        return pb.SignedSnapshot(
            payload=bytes(payload), signature=signed.signature, signer_chain_der=signed.signer_chain_der
        )

    return {
        "signature: ": flipped,
        "snapshot": lambda _: relay.signed(b"\xff\xfe no policy at all"),
        "effect": changed(lambda snapshot: setattr(snapshot.rules[0], "effect", "perhaps")),
        "inbound_mode": changed(lambda snapshot: setattr(snapshot, "inbound_mode", "ask-me")),
        "workload: it is for shop/front": changed(lambda snapshot: setattr(snapshot, "workload", "shop/front")),
        "is older than": changed(lambda snapshot: setattr(snapshot, "version", 1)),
    }


def set_mode(controller: Served, mode: str) -> None:
    """Change the mode of shop/cart, without waiting for anybody."""
    asked = {"workload": "shop/cart", "mode": mode, "owner": "anna", "reason": "a test", "wait": 0}
    controller.call("POST", "/modes", asked)


def refusal(controller: Served) -> str:
    """What the sidecar says of the newest policy; empty when it holds it."""
    (sidecar,) = controller.get("/status")["sidecars"]
    return str(sidecar["nack"]) or ("" if sidecar["held_version"] == sidecar["pushed_version"] else "not yet")


def test_a_policy_that_is_not_good_is_refused_shown_and_changes_nothing(tmp_path: Path) -> None:
    with served(tmp_path / "controller") as controller, echo_service() as application:
        relay = Relay(controller.state_dir, tmp_path / "sidecar" / "state", controller.grpc)
        with relay.serving() as address:
            sidecar = Sidecar(controller, tmp_path / "sidecar", controller=address)
            sidecar.serve(application)
            with sidecar.running():
                for words, spoil in spoilt(relay).items():
                    until(lambda: not refusal(controller), "the good policy")
                    kept = (sidecar.state_dir / "snapshot.bin").read_bytes()
                    relay.spoil = spoil
                    set_mode(controller, "quarantine")  # which must not come into force: nobody would get in any more
                    until(lambda: words in refusal(controller), words)  # noqa: B023  # called before the next turn
                    status = hedgerow("status", env=controller.access)
                    assert "1 in trouble" in status.out
                    assert words in next(line for line in status.out.splitlines() if line.startswith("cart-0"))
                    assert sidecar.ask() == b"hello"
                    assert sidecar.readiness()[0] == 200
                    assert (sidecar.state_dir / "snapshot.bin").read_bytes() == kept
                    relay.spoil = honest
                    set_mode(controller, "learn")
                until(lambda: not refusal(controller), "the good policy")
                assert sidecar.ask() == b"hello"
                assert "0 in trouble" in hedgerow("status", env=controller.access).out
                set_mode(controller, "quarantine")  # the same, unspoilt, does
                until(lambda: sidecar.ask() == b"", "the quarantine")
        assert "Traceback" not in sidecar.log.read_text()
        assert "Traceback" not in controller.log.read_text()
