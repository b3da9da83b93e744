# SPDX-License-Identifier: Apache-2.0
"""The status of a policy object says what plans and receipts say, and never more."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.cluster import PolicyFact, document_mark
from schemas.enforcement import Plan, Receipt, Refusal, decode_plan_head, encode
from schemas.operations import Backend
from schemas.policy_set_mark import PolicySetMark
from schemas.refusals import RefusalCode
from schemas.verdict import RuleRef
from sinks.kubernetes.answers import Answers
from sinks.kubernetes.policy_status import Hits, differs, shortened, status, told

KEY = "KubeArmorPolicy/shop/no-udp"
DOCUMENT = b"{}"
FACT = PolicyFact(kind="KubeArmorPolicy", namespace="shop", name="no-udp", uid="u1", generation=3, document=document_mark(DOCUMENT))  # fmt: skip
REF = RuleRef(policy="no-udp", kind="KubeArmorPolicy", namespace="shop", position="spec.network.matchProtocols[0]")
REFUSED = Refusal(ref=REF, backend=Backend.BPF_LSM, reason="no patterns", code=RefusalCode.PATTERN)


def of(document: bytes | None = DOCUMENT) -> str:
    """The mark of a set of policies that has this one alone."""
    made = PolicySetMark()
    made.take(KEY, document)
    return made.text


def plan(
    node: str = "n1", generation: int = 1, policy_set: str = of(), containers: int | None = 2, **more: Any
) -> bytes:
    selected = () if containers is None else ((KEY, containers),)
    return encode(
        Plan(
            node=node,
            generation=generation,
            digest=f"d{generation}",
            scopes=(),
            policy_set=policy_set,
            selected=selected,
            **more,
        )
    )


def receipt(node: str = "n1", generation: int = 1, **more: Any) -> Receipt:
    return Receipt(
        node=node,
        generation=generation,
        digest=f"d{generation}",
        applied_ns=1,
        took_ms=1.0,
        backends=(),
        scopes=1,
        rules=1,
        **more,
    )


def known(*, fact: PolicyFact = FACT, document: bytes = DOCUMENT) -> Answers:
    answers = Answers()
    answers.policy(KEY, fact)
    answers.document(KEY, document)
    return answers


def word(answers: Answers) -> str:
    return told(answers.policies[KEY], answers.outcome(KEY)).word


def test_it_is_in_force_once_every_node_answered_for_this_document() -> None:
    answers = known()
    assert word(answers) == "Waiting", "no node has a plan"
    answers.plan("n1", decode_plan_head(plan(policy_set=of(None))))
    answers.receipt("n1", receipt())
    assert word(answers) == "Waiting", "the plan is of older policies"
    answers.plan("n1", decode_plan_head(plan(generation=2)))
    assert word(answers) == "Waiting", "the receipt is of the plan before"
    answers.receipt("n1", receipt(generation=2))
    assert told(FACT, answers.outcome(KEY)) == ("InForce", "2 containers on 1 node")
    answers.plan("n2", decode_plan_head(plan("n2", policy_set=of(None), containers=None)))
    assert "n2" in told(FACT, answers.outcome(KEY)).sentence, "it may be for something there, once it has heard of it"
    answers.plan("n2", None)
    assert word(answers) == "InForce"


def test_a_newer_object_is_not_in_force_by_the_receipts_of_the_one_before() -> None:
    answers = known(fact=msgspec.structs.replace(FACT, generation=4, document=document_mark(b"other")))
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt())
    assert word(answers) == "Waiting"
    answers.document(KEY, b"other")
    assert word(answers) == "Waiting"
    answers.plan("n1", decode_plan_head(plan(generation=2, policy_set=of(b"other"))))
    answers.receipt("n1", receipt(generation=2))
    assert word(answers) == "InForce"


def test_two_documents_of_one_millisecond_are_told_apart() -> None:
    """Times of records have milliseconds, and clocks of who wrote them differ: the set that a plan is of is what counts."""
    answers = known()
    answers.plan("n1", decode_plan_head(plan(created_ns=10**18)))
    answers.receipt("n1", receipt())
    assert word(answers) == "InForce"
    answers.policy(KEY, msgspec.structs.replace(FACT, document=document_mark(b"other")))
    answers.document(KEY, b"other")
    assert word(answers) == "Waiting", "the plan is newer by its time, and of the document before"


def test_a_plan_that_is_read_before_its_policies_counts_once_they_are_there() -> None:
    answers = Answers()
    answers.policy(KEY, FACT)
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt())
    answers.touched.clear()
    answers.document(KEY, DOCUMENT)
    assert KEY in answers.touched
    assert word(answers) == "InForce"


def test_another_policy_that_changes_leaves_this_one_in_force() -> None:
    answers = known()
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt())
    answers.touched.clear()
    other = "KubeArmorPolicy/shop/other"
    answers.document(other, b"{}")
    assert answers.touched == {other}
    assert word(answers) == "InForce"
    answers.document(other, None)
    assert word(answers) == "InForce"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"refused": (REFUSED,)}, "n1: spec.network.matchProtocols[0]: no patterns [pattern]"),
        ({"partial": (msgspec.structs.replace(REFUSED, code=RefusalCode.LATE),)},
         "n1: spec.network.matchProtocols[0]: enforced in part: no patterns [late]"),
        ({"failed": ("no backend of this node enforces",)}, "n1: no backend of this node enforces"),
    ],
    ids=["refused", "partial", "failed"],
)  # fmt: skip
def test_what_a_node_does_not_hold_is_said_with_its_reason(more: dict[str, Any], words: str) -> None:
    answers = known()
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt(**more))
    made = status(FACT, answers.outcome(KEY), Hits(), {}, "now")
    assert (made["status"], made["refused"]) == ("Partial", [words])
    assert {one["type"]: one["status"] for one in made["conditions"]} == {"Accepted": "True", "InForce": "False"}


def test_a_policy_that_is_for_nothing_has_no_effect() -> None:
    answers = known()
    answers.plan("n1", decode_plan_head(plan(containers=None)))
    answers.receipt("n1", receipt())
    assert word(answers) == "NoEffect"


@pytest.mark.parametrize(
    ("mode", "word", "in_force", "says"),
    [
        ("audited", "Audited", "True", "2 containers on 1 node; what it would block is audited alone"),
        ("shadow", "Shadow", "False", "judged beside the others for 2 containers on 1 node; nothing of it is enforced"),
        (
            "baseline",
            "Baseline",
            "False",
            "judged beside the others for 2 containers on 1 node; nothing of it is enforced",
        ),
        ("disabled", "Disabled", "False", "switched off by its annotation"),
    ],
)
def test_a_policy_that_is_not_meant_says_its_mode(mode: str, word: str, in_force: str, says: str) -> None:
    answers = known(fact=msgspec.structs.replace(FACT, mode=mode))
    answers.plan("n1", decode_plan_head(plan()))
    assert mode == "disabled" or told(answers.policies[KEY], answers.outcome(KEY)).word == "Waiting"
    answers.receipt("n1", receipt())
    made = status(answers.policies[KEY], answers.outcome(KEY), Hits(), {}, "now")
    assert made["status"] == word
    assert {one["type"]: one["status"] for one in made["conditions"]} == {"Accepted": "True", "InForce": in_force}
    assert says in made["conditions"][1]["message"]


def test_errors_and_another_owner_come_first() -> None:
    answers = known(fact=msgspec.structs.replace(FACT, errors=("spec.action: wrong",)))
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt())
    assert told(answers.policies[KEY], answers.outcome(KEY)) == (
        "Refused", "not applied: spec.action: wrong; what was valid before stays in force",
    )  # fmt: skip
    assert word(known(fact=msgspec.structs.replace(FACT, owner="hauberk apply"))) == "NoEffect"


def test_a_receipt_that_is_repeated_touches_nothing() -> None:
    answers = known()
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt(refused=(REFUSED,)))
    assert KEY in answers.touched
    answers.touched.clear()
    answers.receipt("n1", msgspec.structs.replace(receipt(refused=(REFUSED,)), applied_ns=2))
    assert not answers.touched
    answers.receipt("n1", receipt())
    assert answers.touched == {KEY}
    answers.touched.clear()
    answers.plan("n1", None)
    answers.receipt("n1", None)
    assert word(answers) == "Waiting"


def test_only_what_says_something_else_differs_and_times_of_transition_stay() -> None:
    answers = known()
    answers.plan("n1", decode_plan_head(plan()))
    answers.receipt("n1", receipt())
    first = status(FACT, answers.outcome(KEY), Hits(), {}, "then")
    again = status(FACT, answers.outcome(KEY), Hits(), first, "now")
    assert again == first
    # As the API server gives it back: nothing that is empty.
    kept = {name: value for name, value in first.items() if value not in ([], None)}
    assert differs(again, kept) == (False, False)
    hit = status(FACT, answers.outcome(KEY), Hits(blocked=1, last="x"), first, "now")
    assert differs(hit, first) == (True, False)
    answers.receipt("n1", receipt(refused=(REFUSED,)))
    other = status(FACT, answers.outcome(KEY), Hits(), first, "now")
    assert differs(other, first) == (True, True)
    assert [one["lastTransitionTime"] for one in other["conditions"]] == ["then", "now"]


def test_a_status_that_has_no_room_keeps_its_word_and_one_reason_of_each_kind() -> None:
    fact = msgspec.structs.replace(FACT, errors=tuple(f"spec.{number}: {'wrong ' * 200}" for number in range(50)))
    made = status(fact, known(fact=fact).outcome(KEY), Hits(), {}, "2026-11-28T10:00:00Z")
    brief = shortened(made)
    assert (brief["status"], brief["errors"][1]) == ("Refused", "and 49 more")
    assert brief["errors"][0].startswith("spec.0: wrong")
    assert len(msgspec.json.encode(brief)) < 1500 < len(msgspec.json.encode(made))
    assert shortened(brief)["status"] == "Refused"
