"""What the tests of a sidecar share: a network with a pod, two sidecars in one process, a controller that runs, and a
sidecar's credentials for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from random import Random

import pytest

from certs.ca import CertificateAuthority
from sidecar.certificate_agent import CertificateAgent
from sidecar.channel import ControllerLink
from sidecar.state import StateDirectory
from tests.sidecar.dataplane.netns import Network
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN
from tests.sidecar.dataplane.two_pods import TwoPods
from tests.sidecar.fake_controller import FakeController


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create(TRUST_DOMAIN, time.time())


@pytest.fixture
async def two_pods(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield TwoPods(authority, stack)


@pytest.fixture
def network():
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    network = Network()
    yield network
    network.remove()


@pytest.fixture
def pod(network):
    return network.pod()


@pytest.fixture
def prefix(pod):
    """Runs what stands behind it in the pod's network."""
    return "ip", "netns", "exec", pod.namespace.name


@pytest.fixture
async def controller():
    async with FakeController() as fake:
        yield fake


class Joined:
    """A sidecar that has joined: settings, state, credentials and a link to the controller."""

    def __init__(self, settings, credentials, state, link):
        self.settings = settings
        self.credentials = credentials
        self.state = state
        self.link = link


@pytest.fixture
async def joined(controller, tmp_path):
    settings = controller.settings(tmp_path)
    state = StateDirectory(settings.state_dir)
    credentials = await CertificateAgent(settings, state, Random(3), time.time).obtain()
    link = ControllerLink(settings.controller, credentials, Random(4))
    yield Joined(settings, credentials, state, link)
    await link.close()
    state.close()
