"""Of the kubernetes package we load what we use, and spoil it for nobody."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def said(program: str) -> list[str]:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_none_of_the_classes_of_every_kind_is_imported():
    names = said("""
        import sys
        from controller.kube.library import library
        loaded = set(sys.modules)
        found = library()
        assert library() is found
        made = found.configuration()
        made.host = "https://192.0.2.1"
        print(found.connection.__name__, made.host)
        print(sum("_api" in name or ".v1" in name for name in set(sys.modules) - loaded))
        print([name for name in sys.modules if name.split(".")[0] == "kubernetes"])
    """)
    assert names == ["RESTClientObject https://192.0.2.1", "0", "[]"]


def test_others_in_the_process_import_all_of_it():
    said("""
        import asyncio
        from controller.kube.library import library
        mine = library()
        from kubernetes import client
        from kubernetes.aio.client import Configuration, CoreV1Api
        assert client.V1Pod and CoreV1Api
        assert mine.configuration is not Configuration
    """)


def test_what_is_there_already_is_taken():
    said("""
        import sys
        from kubernetes.aio.client import Configuration
        before = set(sys.modules)
        from controller.kube.library import library
        assert library().configuration is Configuration
        assert "kubernetes.aio.client.models" in sys.modules
    """)


@pytest.mark.parametrize("module", ["rest", "configuration"])
def test_a_package_that_needs_all_of_itself_is_imported_as_a_whole(module):
    """Another version may be laid out otherwise: its modules may want more of the packages than we put there."""
    said(f"""
        import sys

        class Wanting:
            def find_spec(self, name, path=None, target=None):
                if name == "kubernetes.aio.client.{module}" and not hasattr(sys.modules["kubernetes"], "__version__"):
                    raise ImportError("cannot import name 'V1Pod'")

        sys.meta_path.insert(0, Wanting())
        from controller.kube.library import library
        found = library()
        assert found.configuration is sys.modules["kubernetes.aio.client"].Configuration
    """)
