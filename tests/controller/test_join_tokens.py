"""A join token opens the door once, in time, and only when all of it is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller import join_tokens
from controller.errors import InvalidRequest, JoinTokenError
from tests.controller.mesh import NOW, instance


def code(text: str, token: join_tokens.JoinToken, now: float = NOW) -> str:
    with pytest.raises(JoinTokenError) as caught:
        join_tokens.check(text, {token.id: token}, now)
    secret = text.rpartition(".")[2]
    assert not secret or len(secret) < 8 or secret not in str(caught.value)
    assert caught.value.field == "join_token"
    assert caught.value.remedy
    return caught.value.code


def test_the_right_text_finds_its_token() -> None:
    text, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert join_tokens.check(f" {text}\n", {token.id: token}, NOW + 59.9) is token
    assert token.instance_key == "shop/cart-0"


def test_nothing_that_is_kept_opens_anything() -> None:
    text, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert text.rpartition(".")[2] not in repr(token)
    assert code(f"hedgerow-join.{token.id}.{token.digest[:43]}", token) == "join-token-unknown"


def test_two_tokens_share_nothing() -> None:
    texts = {join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)[0] for _ in range(50)}
    assert len({part for text in texts for part in text.split(".")[1:]}) == 100
    assert all(len(text.rpartition(".")[2]) == 43 for text in texts)  # 256 bits in base64


@pytest.mark.parametrize("spoil", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[:-1] + "=", lambda t: t.upper()])
def test_a_text_that_is_not_quite_right_is_unknown(spoil) -> None:
    text, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert code(spoil(text), token) == "join-token-unknown"


@pytest.mark.parametrize("text", ["", "x", "hedgerow-join..", "ä" * 500, "hedgerow-join.0000000000000000." + "A" * 43])
def test_any_other_text_is_unknown(text: str) -> None:
    _, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert code(text, token) == "join-token-unknown"


def test_the_secret_of_one_token_does_not_open_another() -> None:
    text, _ = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    _, token = join_tokens.make(instance("cart-1"), 60.0, "ann", NOW)
    assert code(f"hedgerow-join.{token.id}.{text.rpartition('.')[2]}", token) == "join-token-unknown"


def test_an_expired_one_says_so() -> None:
    text, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert code(text, token, NOW + 60) == "join-token-expired"


def test_a_used_one_says_so_even_when_expired_too() -> None:
    text, token = join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)
    assert code(text, replace(token, used_at=NOW), NOW + 100) == "join-token-used"


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), join_tokens.MAX_LIFETIME + 1])
def test_a_lifetime_out_of_bounds_is_refused(lifetime: float) -> None:
    with pytest.raises(InvalidRequest, match="expires_in"):
        join_tokens.make(instance("cart-0"), lifetime, "ann", NOW)
