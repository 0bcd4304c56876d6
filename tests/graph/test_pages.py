"""What is let go of is what can be read again, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from graph.pages import let_go_of_files, readable_again

MAPPINGS = """\
55d0c0000000-55d0c0004000 r--p 00000000 08:01 77 /usr/bin/python3
Size:                 16 kB
Rss:                  12 kB
Anonymous:             0 kB
55d0c0004000-55d0c0008000 r-xp 00004000 08:01 77 /usr/bin/python3
Rss:                  16 kB
Anonymous:             {written} kB
55d0c0008000-55d0c000c000 {rights} 00008000 08:01 {inode} {name}
Rss:                  {resident} kB
Anonymous:             0 kB
"""
FIRST = (0x55D0C0000000, 0x4000, 12 * 1024)
SECOND = (0x55D0C0004000, 0x4000, 16 * 1024)
THIRD = (0x55D0C0008000, 0x4000, 8 * 1024)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [FIRST, SECOND, THIRD]),
        ({"written": 4}, [FIRST, THIRD]),  # the linker or a debugger wrote to it: the file does not hold it
        ({"rights": "rw-p"}, [FIRST, SECOND]),
        ({"rights": "rwxp"}, [FIRST, SECOND]),
        ({"rights": "r--s"}, [FIRST, SECOND]),  # shared with whoever writes to it
        ({"inode": 0, "name": "[vdso]"}, [FIRST, SECOND]),  # no file to read it from
        ({"resident": 0}, [FIRST, SECOND]),
    ],
)
def test_only_what_is_as_in_its_file_is_let_go_of(changed: dict[str, object], expected: list[tuple[int, int, int]]):
    fields = {"written": 0, "rights": "r-xp", "inode": 78, "name": "/usr/lib/x y.so", "resident": 8} | changed
    assert list(readable_again(MAPPINGS.format(**fields).splitlines())) == expected


def test_a_kernel_that_does_not_say_costs_nothing(tmp_path: Path):
    assert let_go_of_files(tmp_path / "missing") == 0
