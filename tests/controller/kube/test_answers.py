"""What the API server's refusals become, and what people are told to do."""

from __future__ import annotations

import json

import pytest

from controller.kube import errors
from controller.kube.answers import Call, refusal_of
from controller.kube.kinds import DEPLOYMENTS, PODS

LIST = Call("list", "/api/v1/pods", PODS)
GET = Call("get", "/api/v1/namespaces/shop/pods/x", PODS, "shop", "x")
ACCOUNT = "system:serviceaccount:hedgerow-system:hedgerow-controller"


def denied(user: str, verb: str, what: str) -> str:
    return f'{what} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group "" at the cluster scope'


def status(message="", reason=""):
    return json.dumps({"kind": "Status", "message": message, "reason": reason}).encode()


@pytest.mark.parametrize(
    ("call", "code", "body", "wanted", "passing"),
    [
        (LIST, 401, status("Unauthorized"), errors.Unauthorized, True),
        (LIST, 403, status(denied("alice", "list", "pods")), errors.Forbidden, True),
        (LIST, 403, status("pods is forbidden: exceeded quota"), errors.Refused, False),
        (GET, 404, status("not found"), errors.NoSuchObject, False),
        (LIST, 404, b"404 page not found", errors.NoSuchResource, True),
        (GET, 409, status("modified", "Conflict"), errors.Conflicting, False),
        (LIST, 410, status("too old", "Expired"), errors.Expired, True),
        (LIST, 400, status("continue is too old", "Expired"), errors.Expired, True),
        (GET, 422, status("invalid", "Invalid"), errors.Refused, False),
        (LIST, 429, status("slow down"), errors.Unreachable, True),
        (LIST, 503, b"<html>", errors.Unreachable, True),
        (LIST, 408, b"", errors.Unreachable, True),
        (LIST, 418, b"[]", errors.Refused, False),
    ],
)
def test_each_status_has_its_meaning(call, code, body, wanted, passing):
    error = refusal_of(call, code, {}, body)
    assert type(error) is wanted
    assert (error.status, error.passing) == (code, passing)


@pytest.mark.parametrize(
    ("call", "user", "words"),
    [
        (
            LIST,
            ACCOUNT,
            '{apiGroups: [""], resources: ["pods"], verbs: ["list"]} to a role of ServiceAccount hedgerow-',
        ),
        (Call("patch", "/", DEPLOYMENTS, "shop", "x", "status"), "alice", 'resources: ["deployments/status"], verbs'),
        (Call("get", "/version"), "alice", 'nonResourceURLs: ["/version"], verbs: ["get"]'),
    ],
)
def test_a_missing_permission_names_the_rule_and_whose_it_is(call, user, words):
    error = refusal_of(call, 403, {}, status(denied(user, call.verb, "pods")))
    assert words in error.remedy
    assert ("ServiceAccount hedgerow-controller in hedgerow-system" in error.remedy) is (user == ACCOUNT)
    assert ("user alice" in error.remedy) is (user == "alice")


def test_what_the_server_says_is_shown_printable_and_bounded():
    error = refusal_of(LIST, 500, {}, status("a\x1b[31m" + "x" * 10_000))
    assert "\x1b" not in str(error)
    assert len(str(error)) < 1000


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("-1", 0.0), ("1e9", 0.0), ("soon", 0.0), ("", 0.0)])
def test_the_servers_own_pause_is_obeyed_where_it_is_a_number(header, seconds):
    error = refusal_of(LIST, 429, {"Retry-After": header}, b"")
    assert isinstance(error, errors.Unreachable)
    assert error.retry_after == seconds
