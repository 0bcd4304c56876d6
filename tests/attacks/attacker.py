"""The attacker as a process of its own, which yields the processor to everybody: it stands for another machine.

Each line of standard input names an attack of :mod:`tests.attacks.floods`, where it goes and for how long; it is
answered with what came of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from tests.attacks import floods


def main() -> None:
    os.nice(19)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("{}", flush=True)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        attack = floods.ATTACKS[command.pop("attack")]
        print(json.dumps(attack(**command)), flush=True)


if __name__ == "__main__":
    main()
