# SPDX-License-Identifier: Apache-2.0
"""Learning for the page: when it runs, what is kept, how it ends; and the real learner in its process, over a real store."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
from pathlib import Path

import msgspec
import pytest
import yaml

from bus.contract import Record
from hauberk import discovery, written_policies
from hauberk.learner_process import LearnerProcess, Task, bounded
from hauberk.learner_worker import Worker
from kernel.machine import Machine
from policy.documents import key, to_json
from policy.learn.learner import learn
from policy.parse import parse
from policy.ruleset import PostureSettings
from schemas.cluster import PodFact
from schemas.cluster import encode as encode_fact
from schemas.errors import DecodeError, HauberkError, PolicyError, Unavailable
from schemas.identity import Owner
from schemas.identity import encode as encode_identity
from schemas.operations import Operation
from schemas.topics import CLUSTER, INVENTORY, POLICIES
from sinks.store.store import Query
from sinks.web import learning as module
from sinks.web import learnt
from sinks.web.learning import Learning
from sinks.web.learnt import Done, Far, FoundWorkload, LearnFailure, LearntLine, LearntSheet, Remark


def found(name: str, size: int = 10) -> FoundWorkload:
    line = LearntLine(
        policy=name, label=name, workloads=("w",), state="Learning", unseen=0.5, clean=0.0, instances=1, newest="x", newest_at=1, rules=1, apart=0,
        behaviours=1, events=1,
    )  # fmt: skip
    text = os.urandom(size).hex()
    return FoundWorkload(
        line=line,
        sheet=LearntSheet(
            policy=name,
            label=name,
            sentence="",
            selects_unseen="",
            rules=(),
            more_rules=0,
            apart=(),
            more_apart=0,
            yaml=text,
        ),
    )


class Script:
    """A learner that says what it is told to, when it is let."""

    def __init__(self, *words):
        self.words = words
        self.gate = asyncio.Event()
        self.gate.set()
        self.content = 0
        self.begun = self.closed = 0

    def changed(self):
        return self.content

    async def learn(self):
        self.begun += 1
        try:
            for word in self.words:
                await self.gate.wait()
                if isinstance(word, Exception):
                    raise word
                yield word
        finally:
            self.closed += 1


async def settled(learning, until):
    await until(lambda: not learning.look().learning)
    return learning.look()


async def test_nobody_asks_nobody_learns():
    script = Script(Done())
    learning = Learning(script, 1 << 20)
    await asyncio.sleep(0)
    assert script.begun == 0
    await learning.close()


async def test_one_run_at_a_time_and_how_far_it_is(until):
    script = Script(Far(read=7), Far(read=9, learnt=1, of=2), found("a"), Done())
    script.gate.clear()
    learning = Learning(script, 1 << 20)
    assert learning.look().learning
    assert learning.look().lines == ()
    script.gate.set()
    told = await settled(learning, until)
    assert (script.begun, script.closed) == (1, 1)
    assert (told.far.of, [one.policy for one in told.lines], told.why) == (2, ["a"], "")
    assert json.loads(learning.sheet("a"))["policy"] == "a"
    assert learning.sheet("nobody") is None


async def test_it_is_learnt_again_when_the_store_changed_and_its_time_has_come(monkeypatch, until):
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 0.0)
    script = Script(found("a"), Done())
    learning = Learning(script, 1 << 20)
    learning.look()
    await settled(learning, until)
    assert not learning.look().learning, "nothing has changed"
    script.content = 1
    monkeypatch.setattr(module, "AGAIN_SECONDS", 1000.0)
    assert learning.look().learning
    script.content = 2
    assert (await settled(learning, until)).lines
    assert script.begun == 2
    assert not learning.look().learning, "its time has not come"
    await learning.close()


async def test_what_fails_keeps_the_answer_of_before_and_is_tried_again(monkeypatch, until):
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 0.0)
    script = Script(found("a"), Remark(text="so"), Done())
    learning = Learning(script, 1 << 20)
    learning.look()
    await settled(learning, until)
    for words, why in (
        ((found("b"), LearnFailure(why="it is damaged")), "it is damaged"),
        ((Unavailable("the store is away"),), "the store is away"),
        ((found("b"),), "it ended without one"),
    ):
        script.words, script.content = words, script.content + 1
        await until(lambda why=why: why in learning.look().why)
        told = learning.look()
        assert [one.policy for one in told.lines] == ["a"]
        assert told.remarks == ("so",)
    begun = script.begun
    await until(lambda: learning.look().learning and script.begun > begun)
    await learning.close()


async def test_what_is_kept_has_a_cap_and_what_is_cut_is_counted(monkeypatch, until):
    monkeypatch.setattr(module, "LINES_MOST", 3)
    learning = Learning(Script(*(found(f"p{n}", 2000) for n in range(5)), Done(more=4)), 6000)
    learning.look()
    told = await settled(learning, until)
    assert ([one.policy for one in told.lines], told.more, told.cut) == (["p0", "p1", "p2"], 6, 1)
    assert 0 < learning.kept_bytes <= 6000
    assert learning.sheet("p2") is None


async def test_too_long_is_a_sentence_and_the_run_ends(monkeypatch, until):
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.05)
    script = Script(Done())
    script.gate.clear()
    learning = Learning(script, 1 << 20)
    learning.look()
    assert "expected to learn within" in (await settled(learning, until)).why
    assert script.closed == 1


def test_words_come_through_frames_and_nothing_else_does():
    word = found("a\u202e\n")
    body = learnt.frame(word)[4:]
    assert learnt.told(body) == word
    for bad in (b"", b"{}", b'{"type":"other"}', b"\xff", body[:-1]):
        with pytest.raises(DecodeError, match="expected words of this version"):
            learnt.told(bad)
    with pytest.raises(ValueError, match="at most"):
        learnt.frame(Remark(text="x" * (learnt.FRAME_MOST + 1)))


# ---- the real learner


async def words(learner):
    return [one async for one in learner.learn()]


@pytest.fixture
def inside(tmp_path):
    """What the process does, in this one: for what does not depend on where."""

    def inside(path=None, **more):
        out = io.BytesIO()
        task = Task(
            parent=0,
            store=str(path or tmp_path / "summary.db"), since=0, memory_bytes=1 << 30, postures=msgspec.json.encode(PostureSettings()), policies=(),
            facts=(), inventory=(),
        )  # fmt: skip
        Worker(msgspec.structs.replace(task, **more), out).run()
        told, left = [], out.getvalue()
        while left:
            (length,) = learnt.LENGTH.unpack(left[:4])
            told.append(learnt.told(left[4 : 4 + length]))
            left = left[4 + length :]
        return told

    return inside


def one_of(kind, told):
    return [one for one in told if isinstance(one, kind)]


def talked(make, count=1, address="10.0.0.9"):
    return make.entry(
        count, operation=Operation.CONNECT, family=2, socket_type=1, protocol=6, resource="", address=address, port=443
    )


def ran(make, resource="/usr/bin/id"):
    return make.entry(1, operation=Operation.EXEC, resource=resource)


def test_it_learns_what_discover_learns(store, make, inside, tmp_path):
    host = make.identity("h", kind="host", cgroup_path="/system.slice/ssh.service")
    store.apply(
        [make.summary(0, None, make.entry(3, resource="/srv/a"), make.entry(2, resource="/srv/b"), ran(make)),
         make.summary(0, None, make.entry(1, resource="/srv/a"), identity=make.identity("other", pod="web-2")),
         make.summary(0, None, make.entry(9, resource="/srv/h"), identity=host)], [],
    )  # fmt: skip
    told = inside()
    assert told[-1] == Done()
    some = one_of(FoundWorkload, told)
    wanted = [
        one for kinds in (("container",), ("host", "node"))
        for one in learn(discovery.stored(str(tmp_path / "summary.db"), Query(kinds=kinds), None))
    ]  # fmt: skip
    assert [one.sheet.yaml for one in some] == [
        written_policies.yaml_text(one.body, written_policies.comment(one)) for one in wanted
    ]
    web, ssh = some
    assert (web.line.label, web.line.workloads, web.line.instances, web.line.behaviours) == (
        "shop/web/web",
        ("shop/web",),
        2,
        4,
    )
    assert (ssh.line.label, ssh.line.workloads) == ("node-1/ssh", ("node-1",))
    (rule,) = (one for one in web.sheet.rules if one.rule == "file path /srv/a readOnly")
    assert (rule.count, rule.pods, rule.sources, rule.first) == (4, ("web-2", "web-c0ffee"), ("/bin/cat",), make.start)
    assert parse(web.sheet.yaml.encode(), "page").ok


async def test_the_process_knows_shadows_and_peers_of_the_bus(store, make, learner, bus, inside):
    store.apply(
        [make.summary(0, None, make.entry(3, resource="/srv/a"), make.entry(2, resource="/srv/kept"), talked(make))], []
    )
    (document,) = parse(yaml.safe_dump({
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy",
        "metadata": {"name": "s", "namespace": "shop", "annotations": {"hauberk.io/mode": "shadow"}},
        "spec": {"action": "Block", "severity": 5, "selector": {"matchLabels": {"app": "web"}}, "file": {"matchPaths": [{"path": "/srv/kept"}]}},
    }).encode(), "s").policies  # fmt: skip
    await bus.publish(POLICIES, [Record(key(document), to_json(document))])
    fact = PodFact(uid="p", namespace="shop", name="db-0", node="n", addresses=("10.0.0.9",), started=make.start - 9.0)
    late = PodFact(
        uid="q", namespace="shop", name="db-1", node="n", addresses=("10.0.0.9",), started=make.start + 999.0
    )
    await bus.publish(CLUSTER, [Record(one.uid.encode(), encode_fact(one)) for one in (fact, late)])
    await bus.publish(CLUSTER, [Record(b"bad", b"\xff")])
    (before,) = one_of(FoundWorkload, inside())
    told = await words(learner)
    (after,) = one_of(FoundWorkload, told)
    assert "/srv/kept" in before.sheet.yaml
    assert "/srv/kept" not in after.sheet.yaml
    assert [(one.resource, one.reason) for one in after.sheet.apart] == [
        ("/srv/kept", "a shadow policy or a baseline spoke against it")
    ]
    assert [one.names for one in one_of(learnt.Peers, told)] == [{"10.0.0.9": ("pod/db-0 in shop",)}]


def strangers(make, number=1):
    """A Deployment's container and a CronJob's pod that carry the labels of `make.identity()`, and a container of the same workload."""
    seen = make.identity()
    batch = [
        make.identity(
            f"b{one}", pod=f"batch{one}-1", pod_uid=f"b{one}", owner=Owner("Deployment", f"batch{one}", "shop"), labels=seen.labels, orchestrated=True
        )
        for one in range(number)
    ]  # fmt: skip
    nightly = PodFact(uid="c", namespace="shop", name="n-1", labels=seen.labels, owner=Owner("CronJob", "n", "shop"))
    return {
        "inventory": (*map(encode_identity, [seen, *batch]), b"\xff"),
        "facts": ((nightly.key, encode_fact(nightly)), (b"bad", b"\xff")),
    }


def test_whom_a_policy_selects_that_nothing_was_seen_of_is_told(store, make, inside):
    """In the words of `discover`, beside the policy and above its text; names that are many are a number."""
    seen = make.identity(orchestrated=True)
    store.apply([make.summary(0, None, make.entry(3, resource="/srv/a"), identity=seen)], [])
    (alone,) = one_of(FoundWorkload, inside())
    assert alone.sheet.selects_unseen == ""
    (one,) = one_of(FoundWorkload, inside(**strangers(make)))
    said = "It selects shop/batch0/web, shop/n too, of which nothing was seen."
    assert one.sheet.selects_unseen.startswith(f"{said[:-1]}: what the policy does not allow would be denied there; ")
    assert said in one.sheet.yaml
    assert yaml.safe_load(one.sheet.yaml) == yaml.safe_load(alone.sheet.yaml)
    (many,) = one_of(FoundWorkload, inside(**strangers(make, 9)))
    assert "shop/batch4/web and 5 more too, of which nothing was seen" in many.sheet.selects_unseen
    assert "shop/batch8/web, shop/n too, of which nothing was seen." in many.sheet.yaml


def test_what_was_set_apart_alone_selects_nobody(store, make, inside):
    seen = make.identity(orchestrated=True)
    store.apply([make.summary(0, None, make.entry(3, "Deny", resource="/srv/a"), identity=seen)], [])
    (one,) = one_of(FoundWorkload, inside(**strangers(make)))
    assert (one.line.rules, one.sheet.selects_unseen) == (0, "")


async def test_the_process_asks_the_bus_whom_a_policy_selects(store, make, learner, bus):
    store.apply(
        [make.summary(0, None, make.entry(3, resource="/srv/a"), identity=make.identity(orchestrated=True))], []
    )
    there = strangers(make)
    await bus.publish(INVENTORY, [Record(str(key).encode(), value) for key, value in enumerate(there["inventory"])])
    await bus.publish(CLUSTER, [Record(*fact) for fact in there["facts"]])
    (one,) = one_of(FoundWorkload, await words(learner))
    assert one.sheet.selects_unseen.startswith("It selects shop/batch0/web, shop/n too, ")


async def test_a_policy_that_cannot_be_read_hides_no_other(store, make, learner, bus):
    store.apply([make.summary(0, None, make.entry(3, resource="/srv/a"))], [])
    await bus.publish(POLICIES, [Record(b"KubeArmorPolicy/shop/bad", b"{}")])
    told = await words(learner)
    assert told[-1] == Done()
    assert [one.line.label for one in one_of(FoundWorkload, told)] == ["shop/web/web"]
    (remark,) = one_of(Remark, told)
    assert remark.text.startswith("1 policy cannot be read, and what it may have spoken against is learnt: ")


async def test_no_bus_is_a_remark_and_no_store_a_sentence(learner, bus):
    bus.fail(Unavailable("the brokers are away"), call="latest", times=3)
    told = await words(learner)
    assert [one.text for one in one_of(Remark, told)] == [
        "what shadow policies spoke against is not known, and is learnt: the brokers are away",
        "peers are told by their addresses, and pods that a policy selects and nothing was seen of are not: the brokers are away",
        "containers that a policy selects and nothing was seen of are not told: the brokers are away",
    ]
    assert isinstance(told[-1], LearnFailure)
    assert "there is none" in told[-1].why


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + b"\xff" * 5000, b"text" * 999])
def test_a_store_that_is_damaged_is_one_sentence(tmp_path: Path, inside, content):
    path = tmp_path / "other.db"
    path.write_bytes(content)
    with pytest.raises(HauberkError) as refused:
        inside(path)
    assert "\n" not in str(refused.value)


def test_an_empty_store_has_nobody(store, inside):
    assert inside() == [Far(), Done()]


async def test_too_little_memory_is_one_sentence(store, make, tmp_path, bus):
    entries = [make.entry(1, resource=f"/srv/{number:05d}-{'x' * 200}") for number in range(3000)]
    store.apply([make.summary(0, None, *entries)], [])
    *_, last = await words(LearnerProcess(str(tmp_path / "summary.db"), bus, PostureSettings(), 24 << 20))
    assert isinstance(last, LearnFailure)
    assert "page.learn_bytes" in last.why


def test_it_takes_half_of_a_small_container_at_most():
    """With all of `page.learn_bytes` it would meet the container's limit before its own, and who is killed then may be everybody in it."""
    assert bounded(512 << 20, Machine(memory=512 << 20, processors=1)) == 256 << 20
    assert bounded(512 << 20, Machine(memory=8 << 30, processors=1)) == 512 << 20


async def test_it_ends_with_who_listens(store, make, learner):
    store.apply([make.summary(0)], [])
    words = learner.learn()
    await anext(words)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    mine = [one for one in children if "learner_worker" in Path(f"/proc/{one}/cmdline").read_text()]
    assert len(mine) == 1
    assert Path(f"/proc/{mine[0]}/oom_score_adj").read_text().strip() == "1000"
    await words.aclose()
    assert not Path(f"/proc/{mine[0]}").exists()


async def test_the_page_does_not_hold_what_it_handed_over(store, make, learner, bus):
    """A cluster's facts are megabytes, and a run takes half an hour at most."""
    store.apply([make.summary(0)], [])
    fact = PodFact(uid="p", namespace="shop", name="db-0", node="n", addresses=("10.0.0.9",), started=make.start - 9.0)
    await bus.publish(CLUSTER, [Record(b"p", encode_fact(fact))])
    words = learner.learn()
    await anext(words)
    assert not [one for one in gc.get_objects() if isinstance(one, Task)]
    await words.aclose()


def test_a_change_of_the_store_is_seen(store, make, learner):
    before = learner.changed()
    assert learner.changed() == before
    store.apply([make.summary(0)], [])
    assert learner.changed() != before


def test_a_namespace_that_no_policy_can_name_hides_nobody_else(store, make, inside):
    """Whoever starts containers by hand chooses their labels, and with them the namespace."""
    store.apply([make.summary(0), make.summary(0, identity=make.identity("evil", namespace="<b>\n"))], [])
    told = inside()
    assert [one.line.label for one in one_of(FoundWorkload, told)] == ["shop/web/web"]
    assert [one.text for one in one_of(Remark, told)] == [
        "1 container is in a namespace that Kubernetes refuses (`<b>\\n`), and has no policy"
    ]


def test_a_workload_that_cannot_be_learnt_hides_nobody_else(store, make, inside, monkeypatch):
    monkeypatch.setattr("hauberk.learning.ROWS", 1)
    other = make.identity("other", container_name="cart", owner=Owner("Deployment", "cart", "shop"))
    store.apply([make.summary(0), make.summary(0, identity=other)], [])

    def refusing(sightings, *, done):
        found = list(sightings)
        if found[0].identity.owner.name == "cart":
            raise PolicyError("expected the policy of cart to allow what it was learnt from", ())
        return learn(found, done=done)

    monkeypatch.setattr("policy.learn.learner.learn", refusing)
    told = inside()
    assert [one.line.label for one in one_of(FoundWorkload, told)] == ["shop/web/web"]
    assert [one.text for one in one_of(Remark, told)] == [
        "expected the policy of cart to allow what it was learnt from"
    ]
    assert told[-1] == Done()


def test_what_is_long_is_cut_and_said(store, make, inside, monkeypatch):
    monkeypatch.setattr(learnt, "YAML_MOST", 4000)
    monkeypatch.setattr(learnt, "RULES_MOST", 2)
    monkeypatch.setattr(learnt, "NAMES_MOST", 1)
    identity = make.identity("other", pod="web-2")
    name = "/srv/" + "y" * 5000
    store.apply([make.summary(0, None, make.entry(1, resource=name), ran(make), make.entry(resource="/srv/b")),
                 make.summary(0, None, make.entry(1, resource=name), identity=identity)], [])  # fmt: skip
    (one,) = one_of(FoundWorkload, inside())
    assert one.sheet.yaml == ""
    assert (len(one.sheet.rules), one.sheet.more_rules) == (2, 1)
    (long,) = (rule for rule in one.sheet.rules if "y" * 9 in rule.rule)
    assert (len(long.rule), long.pods, long.more_pods) == (learnt.TEXT_MOST, ("web-2",), 1)


def test_what_does_not_fit_a_frame_hides_nobody_else(store, make, inside, monkeypatch):
    """Names that a container gave to what it made fill a frame: text goes first, then rules; others are told all the same."""
    monkeypatch.setattr(learnt, "FRAME_MOST", 6000)
    names = [f"/srv/{number}{chr(0x5B57) * 60}" for number in range(40)]
    other = make.identity("other", container_name="cart", owner=Owner("Deployment", "cart", "shop"))
    store.apply(
        [make.summary(0, None, *(ran(make, name) for name in names)), make.summary(0, None, ran(make), identity=other)],
        [],
    )
    told = inside()
    assert told[-1] == Done()
    cart, web = sorted(one_of(FoundWorkload, told), key=lambda one: one.line.label)
    assert (cart.line.label, cart.sheet.more_rules) == ("shop/cart/cart", 0)
    assert cart.sheet.yaml
    assert (web.line.rules, web.sheet.yaml) == (len(web.sheet.rules) + web.sheet.more_rules, "")
    assert 4 < len(web.sheet.rules) < 40


def test_names_of_many_peers_come_in_several_frames():
    out = io.BytesIO()
    task = Task(parent=0, store="", since=0, memory_bytes=0, postures=b"", policies=(), facts=(), inventory=())
    worker = Worker(task, out)
    names = {
        f"10.0.{number // 256}.{number % 256}": [f"pod/{'p' * 253} in {'n' * 63}"] * 3
        for number in range(learnt.PEERS_MOST)
    }
    worker.tell_peers(names)
    left, found = out.getvalue(), {}
    while left:
        (length,) = learnt.LENGTH.unpack(left[:4])
        found |= learnt.told(left[4 : 4 + length]).names
        left = left[4 + length :]
    assert found.keys() == names.keys()


async def test_peers_of_several_frames_are_all_kept(until):
    learning = Learning(Script(learnt.Peers(names={"a": ("x",)}), learnt.Peers(names={"b": ("y",)}), Done()), 1 << 20)
    learning.look()
    assert (await settled(learning, until)).peers == {"a": ("x",), "b": ("y",)}
