"""What was there when the process had settled is not looked at again, and what only the start needed is let go of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sidecar.heap import let_go


def run(program: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


def test_what_is_loaded_stays_out_of_later_collections():
    before, frozen, left = run(
        "import asyncio, gc, sidecar.app\nfrom sidecar import heap\n"
        "async def main():\n"
        "    before = len(gc.get_objects())\n    heap.settle()\n"
        "    print(before, gc.get_freeze_count(), len(gc.get_objects()))\n"
        "asyncio.run(main())"
    )
    assert before > 20_000
    assert frozen > before * 0.9
    assert left < 150


def test_what_many_connections_bring_is_looked_at_in_small_portions():
    """A collection but the rare one of everything visits what the first two ages hold, and everybody waits for it."""
    youngest, second = run(
        "import asyncio, gc\nfrom sidecar import heap\n"
        "async def main():\n"
        "    heap.settle()\n"
        "    seen, held = [0, 0], []\n"
        "    def look(phase, info):\n"
        "        age = info['generation']\n"
        "        if phase == 'start' and age < 2:\n"
        "            seen[age] = max(seen[age], sum(len(gc.get_objects(generation=each)) for each in range(age + 1)))\n"
        "    gc.callbacks.append(look)\n"
        "    held.extend([] for _ in range(50_000))\n"
        "    print(*seen)\n"
        "asyncio.run(main())"
    )
    assert 0 < youngest < 1_000
    assert youngest < second < 5_000


def test_code_that_only_the_start_needed_is_let_go_of_and_works_when_it_is_needed_again():
    before, after, released, again = run(
        "import asyncio, re, sidecar.app\nfrom sidecar import heap\nfrom sidecar.metrics.own import resident_bytes\n"
        "from cryptography.hazmat.primitives.asymmetric import ec\n"
        "def one():\n    return ec.generate_private_key(ec.SECP256R1()).key_size + len(re.sub('a', 'b', 'aa'))\n"
        "one()\nbefore = resident_bytes()\nreleased = heap.let_go()\nprint(before, resident_bytes(), released, one())"
    )
    assert again == 258
    assert released > 10_000_000
    assert after < before - released * 0.6  # what runs at this moment is back at once


def test_letting_go_comes_after_what_was_loaded_has_begun():
    (calls,) = run(
        "import asyncio, sidecar.app\nfrom sidecar import heap\nheap.BEGUN = (0.0, 60.0)\n"
        "async def main():\n"
        "    done = asyncio.get_running_loop().create_future()\n"
        "    heap.let_go = lambda: done.set_result(1)\n    heap.settle()\n"
        "    print(await asyncio.wait_for(done, 30))\n"
        "asyncio.run(main())"
    )
    assert calls == 1


def test_a_kernel_that_does_not_say_costs_nothing(tmp_path: Path):
    assert let_go(tmp_path / "missing") == 0
