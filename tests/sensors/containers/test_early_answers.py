# SPDX-License-Identifier: Apache-2.0
"""A name that was said before the container ran is there when it is needed, and the memory of names is bounded."""

from __future__ import annotations

from schemas.identity import Identity, Kind
from sensors.containers.contract import Found
from sensors.containers.early_answers import MOST, EarlyAnswers


def test_a_name_is_kept_until_it_is_forgotten() -> None:
    said, born = EarlyAnswers(), Identity(kind=Kind.CONTAINER, node="n", uid="a", complete=False, namespace="given")
    assert said.of(born) is born
    said.hear(Found(id="a", runtime="docker", name="web", labels={"app": "web"}))
    named = said.of(born)
    assert (named.container_name, named.labels, named.namespace, named.complete) == (
        "web",
        {"app": "web"},
        "given",
        False,
    )
    assert said.forget("a")
    assert not said.forget("a")


def test_the_oldest_goes_first() -> None:
    said = EarlyAnswers()
    for number in range(MOST + 1):
        said.hear(Found(id=str(number), runtime="docker"))
    assert not said.forget("0")
    assert said.forget("1")
