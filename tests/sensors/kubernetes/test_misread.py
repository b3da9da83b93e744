# SPDX-License-Identifier: Apache-2.0
"""Annotations of pods, namespaces and nodes that are not understood are told once each, and counted while they are there."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from bus.memory import MemoryBus
from schemas.topics import CLUSTER
from sensors.kubernetes.ended_facts import EndedFacts
from sensors.kubernetes.facts_watch import FactsWatch
from sensors.kubernetes.published import Published


@pytest.fixture
def watch() -> FactsWatch:
    published = Published(MemoryBus(), CLUSTER)
    return FactsWatch(published, EndedFacts(published, 3600.0, 100), lambda: 1.0)


def tell(
    watch: FactsWatch, kind: str, *objects: tuple[str, dict[str, str]], whole: bool = False, there: bool = True
) -> None:
    apply = next(apply for resource, apply in watch.applies if resource.name == kind)
    apply(whole, [(there, msgspec.Raw(msgspec.json.encode({
        "metadata": {"name": name, "uid": name, "annotations": annotations} | ({"namespace": "shop"} if kind == "pods" else {}),
    }))) for name, annotations in objects])  # fmt: skip


def lines(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("kind", "annotation", "said"),
    [("namespaces", ("kubearmor-visibility", "proces"),
      "annotations of namespace/shop: expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'"),
     ("namespaces", ("kubearmor-file-posture", "blok"),
      "annotations of namespace/shop: expected audit or block in `kubearmor-file-posture`, got 'blok'"),
     ("pods", ("kubearmor-policy", "audit"),
      "annotations of pod/shop/shop: expected enabled, audited or disabled in `kubearmor-policy`, got 'audit'"),
     ("nodes", ("kubearmor-policy", ""), "annotations of node/shop: expected enabled, audited or disabled in `kubearmor-policy`, got ''")],
)  # fmt: skip
def test_each_is_told_once_and_counted_until_it_is_mended(
    watch: FactsWatch, caplog: Any, kind: str, annotation: tuple[str, str], said: str
) -> None:
    for _ in range(3):
        tell(watch, kind, ("shop", dict([annotation])))
    assert lines(caplog) == [said + "; it changes nothing, what is in force without it stays"]
    assert len(watch.misread) == 1
    tell(watch, kind, ("shop", {}))
    assert len(watch.misread) == 0


@pytest.mark.parametrize("kind", ["pods", "namespaces"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_gone_is_not_counted(watch: FactsWatch, kind: str, whole: bool) -> None:
    wrong = {"kubearmor-policy": "audit"}
    tell(watch, kind, ("a", wrong), ("b", wrong), whole=True)
    assert len(watch.misread) == 2
    if whole:
        tell(watch, kind, ("b", wrong), whole=True)
    else:
        tell(watch, kind, ("a", wrong), there=False)
    assert len(watch.misread) == 1


def test_words_that_are_taken_are_not_told(watch: FactsWatch, caplog: Any) -> None:
    tell(watch, "namespaces", ("a", {"kubearmor-visibility": "Process, file,ima,", "kubearmor-file-posture": "Block"}),
         ("b", {"kubearmor-visibility": "none", "kubearmor-policy": "patched"}))  # fmt: skip
    assert (lines(caplog), len(watch.misread)) == ([], 0)


def test_a_value_of_thousands_of_characters_is_told_in_a_line(watch: FactsWatch, caplog: Any) -> None:
    tell(watch, "namespaces", ("a", {"kubearmor-policy": "\x1b[2J" * 200}))
    (line,) = lines(caplog)
    assert len(line) < 500
    assert "\x1b" not in line


def test_a_value_that_is_too_long_is_told_once_whatever_else_it_becomes(watch: FactsWatch, caplog: Any) -> None:
    for length in (1025, 5000, 250_000):
        tell(watch, "pods", ("web", {"kubearmor-policy": "x" * length}))
    assert lines(caplog) == [
        "annotations of pod/shop/web: expected enabled, audited or disabled in `kubearmor-policy`, got more than 1,024 characters, which are not "
        "read; it changes nothing, what is in force without it stays"
    ]
    assert len(watch.misread) == 1
