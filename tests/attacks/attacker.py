"""The attacker as a process of its own.

The first line of standard input is how much it yields the processor to others, from whom it is far away in truth: to
everybody, where it is measured how they fare. On a machine with much else to do it would then hardly run at all. Each
further line names an attack of :mod:`tests.attacks.floods`, where it goes and for how long; it is answered with what
came of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from tests.attacks import floods


def main() -> None:
    os.nice(int(sys.stdin.readline()))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("{}", flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        attack = floods.ATTACKS[command.pop("attack")]
        print(json.dumps(attack(**command)), flush=True)


if __name__ == "__main__":
    main()
