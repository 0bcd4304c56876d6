"""A controller of its own process before many pods that come and go: what it costs, and that it loses nothing.

In the suite with a few hundred pods. The measurement of docs/kubernetes.md, on a machine that does nothing else, prints
its figures and writes them down:

    HEDGEROW_SCALE_PODS=5000 HEDGEROW_SCALE_SECONDS=60 HEDGEROW_SCALE_RESULT=bench/results/inventory.json \
        python -m pytest -s e2e/apiserver/test_inventory_scale.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from controller.kube.client import Client
from e2e.apiserver.crowd import A_WORKLOAD, Crowd, Writer
from e2e.apiserver.custom_resources import install_crds
from e2e.apiserver.measured import ROOT, Measured, controller
from e2e.apiserver.simulated import Kubelet, settings
from e2e.harness.apiserver import ApiServer

PODS_IN_ALL = int(os.environ.get("HEDGEROW_SCALE_PODS", "200"))
SECONDS = float(os.environ.get("HEDGEROW_SCALE_SECONDS", "6"))
#: Pods that are replaced in a second.
CHURN = float(os.environ.get("HEDGEROW_SCALE_CHURN", "50"))
#: Where the figures are written to; empty: nowhere.
RESULT = os.environ.get("HEDGEROW_SCALE_RESULT", "")

#: Of a core, while pods come and go: the goal of 50 changes a second. Only a machine that reached those may be judged.
CORES = 0.5
#: MB for each pod, resident, with its share of services and workloads: more is a leak. Measured: 0.005.
A_POD = 0.01
#: MB that caches and code that was first needed now take, whatever the number of pods.
ONCE = 25.0
#: MB of code and other files that may be resident when there was time to let go of what is not needed. Measured: 14,
#: and 36 before anything is let go of.
FILES = 20.0
#: MB in no file that first uses leave, and that each pod leaves, when nine tenths of them are gone and the controller
#: did not begin anew. Measured with 3,000: 22 together.
USED, A_POD_LEAVES = 12.0, 0.005
#: Pods from which on beginning anew is worth it. Of the growth in no file, what may be left then: a tenth of the pods,
#: their services and slices. And MB of what is used first in a longer run.
MANY, ANEW, MORE = 5000, 0.3, 4.0
#: Of what the pods added to the blocks in use, what may be left when nine tenths of them are gone; their services and
#: slices are still there. And thousands of blocks that whatever was first done meanwhile takes, once.
LEFT, FIRST = 0.3, 25.0


class Figures(dict[str, Any]):
    """What was measured, printed as it comes: a run that fails has said what it knew."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        print(f"scale: {name}: {value}", flush=True)

    def memory(self, when: str, measured: Measured) -> None:
        self[f"MB {when}"] = round(measured.resident(), 1)
        self[f"MB in no file {when}"] = round(measured.private(), 1)
        self[f"thousand blocks {when}"] = round(measured.held(), 1)

    def write(self) -> None:
        print("scale:", json.dumps(self))
        if RESULT:
            commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
            machine = {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
            found = {"commit": commit.stdout.strip(), "machine": machine, "load": os.getloadavg()[0], "figures": self}
            Path(ROOT / RESULT).write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.timeout(600 + PODS_IN_ALL)
async def test_many_pods_that_come_and_go(apiserver: ApiServer, namespace: str, tmp_path: Path) -> None:
    figures = Figures(pods=PODS_IN_ALL)
    await asyncio.to_thread(install_crds, apiserver)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(settings(apiserver.kubeconfig)))
        kubelet = Kubelet(client)
        await stack.enter_async_context(kubelet.alive())
        writer = await stack.enter_async_context(Writer.of(apiserver.kubeconfig, tmp_path))
        measured = stack.enter_context(controller(apiserver.kubeconfig, tmp_path))
        crowd = Crowd(writer, kubelet, namespace)

        async def followed() -> None:
            await measured.until(lambda: measured.pods(namespace) == crowd.running)

        await measured.until(lambda: measured.get("/status")["cluster"]["ready"])
        # what only its start needed is let go of
        await measured.until(lambda: measured.resident() - measured.private() <= FILES)
        figures.memory("before", measured)
        began, used = time.monotonic(), measured.cpu()
        await crowd.grow(PODS_IN_ALL)
        figures["pods a second while growing"] = round(PODS_IN_ALL / (time.monotonic() - began), 1)
        figures["cores while growing"] = round((measured.cpu() - used) / (time.monotonic() - began), 2)
        await followed()
        figures.memory("with all", measured)

        began, used = time.monotonic(), measured.cpu()
        figures["replaced a second"] = round(await crowd.churn(SECONDS, CHURN), 1)
        figures["cores while they come and go"] = round((measured.cpu() - used) / (time.monotonic() - began), 2)
        began = time.monotonic()
        await followed()
        figures["seconds behind at the end"] = round(time.monotonic() - began, 1)
        figures.memory("after that", measured)
        assert len(crowd.behind()) == PODS_IN_ALL // A_WORKLOAD

        def stands_before_them() -> bool:
            """Whether every service has the endpoints of its pods; slices come by a watch of their own."""
            services = {each["name"]: each for each in measured.get("/inventory")["services"]}
            return all(
                {at["address"] for port in services[name]["ports"] for at in port["endpoints"]} == addresses
                for name, addresses in crowd.behind().items()
            )

        await measured.until(stands_before_them)

        # every watch is broken off at once, while more comes and goes
        apiserver.stop()  # not on a thread: what it starts ends with the thread that started it
        apiserver.start()
        async with Writer.of(apiserver.kubeconfig, tmp_path) as crowd.writer:
            await crowd.churn(SECONDS / 3, CHURN)
            await followed()
            await crowd.shrink(0.9)
            await followed()
            most = figures["MB in no file before"] + FILES + USED + A_POD_LEAVES * PODS_IN_ALL
            if PODS_IN_ALL >= 1000:  # fewer are not worth it
                await measured.until(lambda: measured.given_back() <= measured.objects() * 1.05)
            if PODS_IN_ALL >= MANY:
                figures.memory("after -90 %, at first", measured)
                process = measured.pid
                await measured.until(lambda: measured.began_anew() and measured.get("/status")["cluster"]["ready"])
                assert measured.pid == process
                await followed()
                await measured.until(lambda: measured.resident() - measured.private() <= FILES)
            figures.memory("after -90 %", measured)
            await crowd.refill()
            await followed()
            figures.memory("with all again", measured)
    figures.write()
    grown = figures["thousand blocks with all"] - figures["thousand blocks before"]
    left = figures["thousand blocks after -90 %"] - figures["thousand blocks before"]
    assert left <= FIRST + LEFT * grown, "what is held does not follow the pods that are there"
    assert figures["MB after -90 %"] <= most, f"more than {most:.0f} MB are resident when nine tenths are gone"
    if PODS_IN_ALL >= 1000:
        assert figures["MB after -90 %"] < figures["MB after that"], "resident memory does not fall"
    if PODS_IN_ALL >= MANY:
        private = {when: figures[f"MB in no file {when}"] for when in ("before", "after that", "after -90 %")}
        left = private["after -90 %"] - private["before"]
        grown = private["after that"] - private["before"]
        assert left <= MORE + ANEW * grown, "private memory does not follow the pods that are there"
    most = figures["MB before"] + ONCE + A_POD * PODS_IN_ALL
    for when in ("with all", "after that", "after -90 %", "with all again"):
        assert figures[f"MB {when}"] <= most, f"it takes more than {most:.0f} MB {when}"
    if figures["replaced a second"] >= 0.9 * CHURN:
        assert figures["cores while they come and go"] <= CORES * max(1.0, CHURN / 50)
