"""``python -m tests.controller.beginning_anew --config F``: a controller that begins anew once, when it serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from controller import app
from controller.__main__ import main
from controller.anew import BEGAN


class Beginning(app.Controller):
    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        def serving() -> None:
            started()
            if BEGAN not in os.environ:
                self.begin_anew()

        await super().run(serving)


if __name__ == "__main__":
    app.Controller = Beginning
    sys.exit(main())
