"""What objects have in common is held once, and no longer than it is in use."""

from __future__ import annotations

import gc
import weakref

import pytest

from controller.kube.inventory import objects, reading
from controller.kube.inventory.reading import Shared


class Word:
    """Something that can be watched going."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Word) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def test_equal_values_are_one():
    shared = Shared[Word](10)
    first = shared.one(Word("a"))
    assert shared.one(Word("a")) is first
    assert shared.one(Word("b")) is not first


def test_what_is_asked_for_again_stays_and_the_rest_goes():
    shared = Shared[Word](10)
    often, once = shared.one(Word("often")), weakref.ref(shared.one(Word("once")))
    for number in range(1000):
        shared.one(Word(f"passing {number}"))
        assert shared.one(Word("often")) is often
        assert len(shared) <= 20
    gc.collect()
    assert once() is None


@pytest.mark.parametrize("word", ["n" * 254, "x" * 100_000])
def test_long_words_are_not_kept(word):
    before = len(reading._WORDS)
    assert reading.word({"name": word}, "name") == word
    assert len(reading._WORDS) == before


def pod(number: int, labels: int = 2) -> dict:
    return {
        "metadata": {
            "namespace": "shop",
            "name": f"cart-{number}",
            "uid": f"uid-{number}",
            "labels": {f"label-{each}": "".join(["val", "ue"]) for each in range(labels)},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-" + "1", "uid": "u", "controller": True}
            ],
        },
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080, "name": "http"}]}]},
    }


def test_pods_of_one_owner_share_what_they_are_made_from():
    one, other = objects.pod(pod(1)), objects.pod(pod(2))
    assert one.spec is other.spec
    assert one.owner is other.owner
    assert one != other


def test_pods_that_come_and_go_leave_a_bounded_number_of_words():
    for number in range(20_000):
        objects.pod(pod(number))
    assert len(reading._WORDS) <= 2 * 8192
    assert len(objects._TEMPLATES) <= 1024


def test_a_template_out_of_the_ordinary_is_its_pods_alone():
    one, other = objects.pod(pod(1, labels=100)), objects.pod(pod(2, labels=100))
    assert one.spec == other.spec
    assert one.spec is not other.spec
