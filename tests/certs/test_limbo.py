"""x509-limbo: every applicable case through our chain verification and through a real handshake with our contexts.

The certificates of the corpus carry no SPIFFE ID, so :func:`certs.verify.verify_peer` refuses all of them. To mean
something, the stages are judged apart: a case that must fail has to fail at the stage and for the reason in
:mod:`tests.certs.limbo_table`.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from certs import svid
from certs.errors import CertError
from certs.verify import MAX_PATH_INTERMEDIATES, verify_chain, verify_peer
from tests.certs.limbo import TRUST_DOMAIN, Case, Outcome, corpus_path, load_corpus, shake_hands
from tests.certs.limbo_table import ACCEPTED, NOT_APPLICABLE, REFUSED, STRICTER, Refused, Stage, Stricter, Tls

if not corpus_path().is_file():
    if "HEDGEROW_LIMBO" in os.environ:
        raise FileNotFoundError(f"HEDGEROW_LIMBO: {corpus_path()} does not exist")
    pytest.skip(
        "the x509-limbo corpus is not beside this checkout (../shared/corpora/limbo-194.json); "
        "say in HEDGEROW_LIMBO where it is",
        allow_module_level=True,
    )

CASES = load_corpus()
MUST_FAIL: dict[str, Refused | Stricter] = {**REFUSED, **STRICTER}
_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _old_certificates() -> Iterator[None]:
    """The library warns of serial numbers that a later version of it will refuse; the corpus has such on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def chain_stage(case: Case, certificates: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
    """Our chain verification, of what the corpus says or of what a handshake delivered."""
    leaf, *intermediates = certificates or (case.leaf, *case.intermediates)
    depth = (
        MAX_PATH_INTERMEDIATES if case.max_chain_depth is None else min(case.max_chain_depth, MAX_PATH_INTERMEDIATES)
    )
    return verify_chain(leaf, intermediates, case.bundle(), case.now, depth)


def leaf_stage(leaf: bytes) -> list[str]:
    """What each rule on the leaf alone says; every rule is asked, whatever the others said."""
    certificate = x509.load_der_x509_certificate(leaf)
    reasons = []
    rules = (svid.check_not_authority, svid.check_key_usage, svid.check_usages)
    for rule in (*rules, functools.partial(svid.spiffe_id_of, trust_domain=TRUST_DOMAIN)):
        try:
            rule(certificate)
        except CertError as error:
            reasons.append(str(error))
    return reasons


def reasons_of(case: Case, stage: Stage, certificates: tuple[bytes, ...] = ()) -> str:
    """Why ``stage`` refuses; it must, and the stages before it must not."""
    if stage is Stage.BUNDLE:
        with pytest.raises(CertError) as refused:
            case.bundle()
        return str(refused.value)
    case.bundle()
    if stage is Stage.CHAIN:
        with pytest.raises(CertError) as refused:
            chain_stage(case, certificates)
        return str(refused.value)
    assert chain_stage(case, certificates)
    return "\n".join(leaf_stage(certificates[0] if certificates else case.leaf))


def test_every_case_of_the_corpus_is_in_one_table() -> None:
    tables = [REFUSED, ACCEPTED, STRICTER, NOT_APPLICABLE]
    assert sum(map(len, tables)) == len(CASES) == 194
    assert {name for table in tables for name in table} == set(CASES)
    assert [name for name in REFUSED if CASES[name].success] == []
    assert [name for name in (*ACCEPTED, *STRICTER) if not CASES[name].success] == []


@pytest.mark.parametrize("name", MUST_FAIL)
def test_verification_refuses_for_the_cases_own_reason(name: str) -> None:
    expected = MUST_FAIL[name]
    assert expected.reason in reasons_of(CASES[name], expected.stage)


@pytest.mark.parametrize("name", ACCEPTED)
def test_verification_accepts_good_chains(name: str) -> None:
    case = CASES[name]
    path = chain_stage(case)
    assert path[0] == case.leaf
    assert path[-1] in case.trusted


@pytest.mark.parametrize("name", CASES)
def test_no_case_yields_an_identity(name: str) -> None:
    case = CASES[name]
    with pytest.raises(CertError):
        verify_peer(case.leaf, case.intermediates, case.bundle(), case.now)


@pytest.mark.parametrize("name", [name for name, expected in MUST_FAIL.items() if expected.stage is not Stage.BUNDLE])
def test_a_handshake_and_our_reading_of_it_refuse(name: str) -> None:
    case, expected = CASES[name], MUST_FAIL[name]
    if expected.tls is Tls.NO_KEY:
        assert not case.has_key  # nobody can present this certificate
        return
    outcome = outcome_of(case)
    if expected.tls in (Tls.NOT_LOADABLE, Tls.NOT_OFFERED):
        assert outcome.peer_failure
    elif expected.tls is Tls.REFUSES:
        assert outcome.refusal
    else:
        assert not outcome.peer_failure
    # whoever let it pass: what the connection delivered is refused for the same reason as before
    if outcome.received:
        assert expected.reason in reasons_of(case, expected.stage, outcome.received)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_handshake_accepts_good_chains(name: str) -> None:
    case = CASES[name]
    if ACCEPTED[name] is Tls.NO_KEY:
        assert not case.has_key
        return
    outcome = outcome_of(case)
    assert not outcome.peer_failure
    if ACCEPTED[name] is Tls.PASSES:
        assert not outcome.refusal
        assert outcome.received == (case.leaf, *case.intermediates)
        assert chain_stage(case, outcome.received) == chain_stage(case)


def outcome_of(case: Case) -> Outcome:
    """The case's handshake, at the moment that the case asks for."""
    if case.at is None:
        return shake_hands(case)
    return _outcomes_at(int(case.at))[case.id]


@functools.cache
def _outcomes_at(second: int) -> dict[str, Outcome]:
    """The handshakes of all cases of one moment, in a process whose clock stands still there (libfaketime)."""
    library = _faketime()
    if library is None:
        pytest.skip("a handshake in the past needs libfaketime: apt-get install libfaketime")
    judged = [*MUST_FAIL, *ACCEPTED]
    names = [
        name
        for name, case in CASES.items()
        if case.at is not None
        and int(case.at) == second
        and name in judged
        and case.has_key
        and not (name in MUST_FAIL and MUST_FAIL[name].stage is Stage.BUNDLE)
    ]
    clock = dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.certs.limbo", *names],
        cwd=_REPOSITORY,
        env={**os.environ, "LD_PRELOAD": library, "FAKETIME": clock, "TZ": "UTC", "DONT_FAKE_MONOTONIC": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return {
        name: Outcome(refusal, failure, tuple(map(bytes.fromhex, received)))
        for name, (refusal, failure, received) in json.loads(finished.stdout).items()
    }


def _faketime() -> str | None:
    places = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), *Path("/usr").glob("*/faketime/libfaketime.so.1")]
    return str(places[0]) if places else None
