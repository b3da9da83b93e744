# SPDX-License-Identifier: Apache-2.0
"""Guests for tests. `guest(series)`: one of that kernel, for the module; `results(series)`: what the suites did in it.

Kernels' suites run in one pytest session each, when the first result is asked for: beside other tests (`make test`) one guest after
the other, else all at once. HAUBERK_TEST_VM=all (`make test-vm`) runs every file of the kernel suites instead of the chosen ones.
"""

from __future__ import annotations

import contextlib
import os
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from vmrig.debian import NoPackage
from vmrig.kernels import kernel
from vmrig.machine import CHECKOUT, Guest, why_not
from vmrig.programs import precompile

PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
WHOLE = 5400.0
"""Seconds that all suites may take in a guest. Under emulation a load of all programs takes a minute of processor time."""


class Outcome:
    """What one test in the guest came to: `kind` is passed, skipped, failure or error; `text` why."""

    def __init__(self, name: str, kind: str, text: str) -> None:
        self.name, self.kind, self.text = name, kind, text


@pytest.fixture(scope="session")
def kernels() -> Callable[[str], object]:
    """kernels(series): the kernel with the programs compiled for it; skips the test where there is none."""

    def find(series: str) -> object:
        if (reason := why_not()) is not None:
            pytest.skip(reason)
        try:
            found = kernel(series)
        except NoPackage as error:
            pytest.skip(str(error))
        return found

    return find


@pytest.fixture(scope="module")
def guest(kernels: Callable[[str], object]) -> Iterator[Callable[[str], Guest]]:
    """guest(series): a running guest, the same one for the module's tests."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Guest] = {}

        def start(series: str) -> Guest:
            if series not in running:
                running[series] = Guest(kernels(series))
                stack.callback(running[series].off)
            return running[series]

        yield start


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, kernels: Callable[[str], object], build: Callable[[str], str]
) -> Iterator[Callable[[str], dict[str, list[Outcome]]]]:
    """results(series): file of the checkout -> what its tests came to in that kernel."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for item in request.session.items:
        if "results" in getattr(item, "fixturenames", ()):
            wanted[item.callspec.params["series"]].append(item.callspec.params["file"])
    running: dict[str, Future[dict[str, list[Outcome]]]] = {}
    with ThreadPoolExecutor(1 if "PYTEST_XDIST_WORKER" in os.environ else len(wanted)) as pool:

        def ask(series: str) -> dict[str, list[Outcome]]:
            if not running:
                for source in (CHECKOUT / "tests" / "attacks").glob("*.c"):
                    build(source.stem)
                for one, files in wanted.items():
                    running[one] = pool.submit(_suite, kernels(one), sorted(files))
            return running[series].result()

        yield ask


def _suite(found: object, files: list[str]) -> dict[str, list[Outcome]]:
    precompile(found)
    guest = Guest(found)
    try:
        # A kernel that hangs ends its guest, and says so on its console, instead of taking all of WHOLE.
        hung = "echo 300 >/proc/sys/kernel/hung_task_timeout_secs; echo 1 >/proc/sys/kernel/hung_task_panic"
        assert guest.run(["sh", "-c", hung])[0] == 0
        report = guest.room / "report.xml"
        # The second run of what failed is the host's business; nothing is judged by the speed of an emulated processor.
        status, said = guest.run(
            [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=1800", f"--junitxml={report}", *files],
            seconds=WHOLE, PATH=f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}", HAUBERK_TEST_ALONE="1",
            HAUBERK_TEST_VM=os.environ.get("HAUBERK_TEST_VM", ""),
        )  # fmt: skip
        assert status in (0, 1), f"pytest ended with {status} in {found.release}:\n{said[-8000:]}"
        return outcomes(report.read_text(), files)
    finally:
        guest.off()


def outcomes(report: str, files: list[str]) -> dict[str, list[Outcome]]:
    """pytest's JUnit report by file."""
    modules = {str(Path(file).with_suffix("")).replace("/", "."): file for file in files}
    found: dict[str, list[Outcome]] = defaultdict(list)
    for case in ElementTree.fromstring(report).iter("testcase"):
        owner = case.get("classname") or case.get("name") or ""
        file = next((file for module, file in modules.items() if f"{owner}.".startswith(f"{module}.")), owner)
        said = [child for child in case if child.tag in ("failure", "error", "skipped")]
        kind = said[0].tag if said else "passed"
        text = "\n".join(f"{child.get('message')}\n{child.text or ''}" for child in said)
        found[file].append(Outcome(case.get("name") or "", kind, text))
    return found
