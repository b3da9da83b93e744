# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: live alerts, tabs by keyboard, filters, both schemes, a phone, and names that would be markup."""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

import pytest
import yaml

from bus.contract import Record
from policy.parse import parse
from schemas.cluster import PodFact
from schemas.cluster import encode as encode_fact
from schemas.identity import encode as encode_identity
from schemas.operations import Operation
from schemas.summary import SummaryEntry
from schemas.topics import CLUSTER, INVENTORY
from schemas.verdict import RuleRef

pytestmark = pytest.mark.servers
TABS = ("now", "alerts", "workloads", "network", "policies")
HOSTILE = (
    "/tmp/<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "'\"><svg onload=document.title='owned'>",
    "javascript:document.title='owned'//",
    "</pre><iframe srcdoc=\"<script>parent.document.title='owned'</script>\">",
)
BREAKING = (
    "a\n---\nkind: Secret\nx: |\n", "\u202egnp.exe", "b\u2066c\u2069\u200b", "x\x1b[2J\x00\x07", "a: b # c", "- *x &y !!z", "{{ x }}", "'\"`$(id)\\",
    "y" * 5000, "\ufeff\u2028\u0085", "true", "</pre>\r\n\t",
)  # fmt: skip
"""What breaks YAML, a terminal or the order of reading rather than markup."""


def entry(make, count=1, status="Allow", policy="", rule=None, **fields):
    behaviour = make.behaviour(**fields)
    at = make.start * 10**9
    return SummaryEntry(behaviour=behaviour, status=status, policy=policy, rule=rule, count=count, first=at, last=at)


def connection(address, port=443):
    return {"operation": Operation.CONNECT, "family": 2, "socket_type": 1, "protocol": 6, "resource": "", "address": address, "port": port}  # fmt: skip


@pytest.fixture
def fill(store, make):
    def fill():
        rule = RuleRef("no-egress", "KubeArmorPolicy", "shop", "spec.network.matchProtocols[0]", 14)
        cart = make.identity("cart", container_name="cart", owner=make.identity().owner.__class__("Deployment", "cart", "shop"))  # fmt: skip
        store.apply(
            [
                make.summary(0, None, entry(make, 7), entry(make, 4, operation=Operation.EXEC, resource="/usr/bin/curl"),
                             entry(make, 2, **connection("10.0.0.1"))),
                make.summary(0, None, entry(make, 5, "Deny", "no-egress", rule, **connection("169.254.169.254", 80)), identity=cart),
            ],
            [
                make.alert(1), make.alert(2, Action="Block", PolicyName="no-egress", Rule="spec.network.matchProtocols[0]", Severity="9",
                                          NamespaceName="bank", Operation="Network", Resource="169.254.169.254:80"),
            ],
        )  # fmt: skip

    return fill


@pytest.fixture
async def shown(page, fill, tab):
    """The page, open, with what `fill` put there."""
    fill()
    await tab.open(page.url)
    await tab.until("document.querySelectorAll('#newest details').length == 2")
    yield tab
    assert tab.said == [], "the console has nothing to complain of"


async def test_an_alert_arrives_by_itself(shown, store, make):
    await shown.click("#tab-alerts")
    assert await shown.run("document.querySelectorAll('#list details').length") == 2
    await shown.run("window.same = true")
    store.apply([], [make.alert(3, Action="Block", Resource="/etc/gshadow", PolicyName="keep-out", Rule="spec.file.matchPaths[1]", Severity="8")])  # fmt: skip
    await shown.until("document.querySelectorAll('#list details').length == 3")
    first = await shown.text("#list details")
    for word in ("shop/", "web-1", "/bin/cat", "/etc/gshadow", "Block", "keep-out", "spec.file.matchPaths[1]", "8"):
        assert word in first
    assert await shown.run("window.same"), "not loaded again"
    await shown.click("#list summary")
    await shown.until("document.querySelector('#list details[open] pre')")
    whole = json.loads(await shown.run("document.querySelector('#list pre').textContent"))
    assert whole["EventID"] == "node-1:boot:3"
    assert whole["Labels"] == "app=web,tier=front"
    # One more on top leaves the open one open.
    store.apply([], [make.alert(4)])
    await shown.until("document.querySelectorAll('#list details').length == 4")
    assert await shown.run("document.querySelectorAll('#list details')[1].open")
    assert await shown.run("document.querySelector('[data-action=Block]').textContent") == "2"


async def test_activity_is_drawn_as_it_comes(shown, store, make):
    await shown.until("document.querySelectorAll('#chart polyline').length == 4")
    classes = await shown.run("[...document.querySelectorAll('#chart polyline')].map((one) => one.dataset.class)")
    assert classes == ["Process", "File", "Network", "Denied"]
    assert "18" in await shown.text("#tiles")
    store.apply([make.summary(1, None, entry(make, 100), bucket=int(time.time()) // 60 * 60)], [])
    await shown.until("document.querySelector('#tiles').innerText.includes('118')")
    # 100 within the last 15 seconds.
    await shown.until("document.querySelector('#tiles dd').innerText == '6.7'")


async def test_what_was_lost_is_said(shown, store, make):
    """The pipeline tells its losses as alerts, so the store has them."""
    lost = {"Type": "SystemEvent", "Operation": "EventsLost", "PolicyName": "", "Action": "", "ProcessName": "", "Resource": "", "Severity": ""}  # fmt: skip
    store.apply(
        [], [make.alert(5, EventData={"ring": "40", "path": "2"}, Message="the node lost part of its events", **lost)]
    )
    await shown.until("document.querySelector('#tiles').innerText.includes('42')")
    assert "EventsLost the node lost part of its events" in await shown.text("#newest details")
    assert "notice" in await shown.text("#newest details")


async def test_tabs_by_keyboard(shown):
    await shown.run("document.querySelector('#tab-now').focus()")
    for name in (*TABS[1:], "now"):
        await shown.key("ArrowRight")
        await shown.until(f"document.activeElement.id == 'tab-{name}'")
        seen = await shown.run("[...document.querySelectorAll('[role=tabpanel]')].filter((one) => one.checkVisibility()).map((one) => one.id)")  # fmt: skip
        assert seen == [name]
        assert await shown.run("location.hash") == f"#{name}"
    await shown.key("End")
    await shown.until("document.activeElement.id == 'tab-policies'")
    await shown.key("Tab")
    assert await shown.run("document.activeElement.tagName") == "SELECT"


async def test_filters(shown):
    await shown.click("#tab-alerts")
    count = "document.querySelectorAll('#list details').length"
    await shown.type("#filter-text", "no-egress")
    await shown.until(f"{count} == 1")
    assert await shown.text("#shown") == "1 of 2"
    await shown.run("document.querySelector('#filter-text').value = ''")
    for selector, value, left in (
        ("#filter-action", "Audit", 1),
        ("#filter-namespace", "bank", 0),
        ("#filter-action", "", 1),
    ):
        await shown.run(
            f"((one) => {{ one.value = {value!r}; one.dispatchEvent(new Event('input')); }})(document.querySelector({selector!r}))"
        )
        await shown.until(f"{count} == {left}")
        assert await shown.run(f"document.querySelector({selector!r}).value") == value
    assert "bank" in await shown.text("#list")


async def test_a_workload_shows_its_tables(shown):
    await shown.click("#tab-workloads")
    await shown.until("document.querySelectorAll('.pick').length == 2")
    assert "shop/cart" in await shown.text(".pick")
    assert "5 denied" in await shown.text(".pick")
    await shown.type("#workload-text", "shop/web")
    await shown.until("document.querySelectorAll('.pick').length == 1")
    await shown.click(".pick")
    await shown.until("document.querySelectorAll('#sheet table').length == 3")
    text = await shown.text("#sheet")
    for word in ("Process Data", "DESTINATION PROCESS PATH", "/usr/bin/curl", "File Data", "/etc/shadow", "Egress connections", "10.0.0.1", "443", "Allow"):  # fmt: skip
        assert word in text
    assert "LABELS" not in text, "a column nobody has anything in"


async def test_network_and_policies(shown):
    await shown.click("#tab-network")
    await shown.until("document.querySelectorAll('#edges tbody tr').length == 2")
    assert (await shown.text("#edges tbody tr")).split("\t")[:5] == ["shop/cart", "to", "169.254.169.254", "80", "TCP"]
    assert "5 denied" in await shown.text("#edges tbody tr")
    assert await shown.run("document.querySelectorAll('#map .edge[data-verdict=deny]').length") == 1
    await shown.click("#tab-policies")
    await shown.until("document.querySelector('#policy-list tbody tr')")
    text = await shown.text("#policy-list")
    for word in ("no-egress", "KubeArmorPolicy in shop", "5 denied", "spec.network.matchProtocols[0]"):
        assert word in text


async def test_what_was_learnt_is_shown_with_its_evidence_and_can_be_copied(store, serve, learner, make, tab, bus):
    store.apply(
        [make.summary(0, None, entry(make, 7, resource="/srv/a"), entry(make, 4, operation=Operation.EXEC, resource="/usr/bin/id"),
                      entry(make, 1, "Deny", "no-egress", resource="/etc/shadow"), entry(make, 2, **connection("10.0.0.9")),
                      entry(make, 2, policy="web", **connection("10.0.0.8"))),
         make.summary(0, None, entry(make, 2, resource="/srv/a"), identity=make.identity("other", pod="web-2"))], [],
    )  # fmt: skip
    fact = PodFact(uid="p", namespace="shop", name="db-0", addresses=("10.0.0.9",), started=make.start - 9.0)
    await bus.publish(CLUSTER, [Record(b"pod/p", encode_fact(fact))])
    evil = make.identity().owner.__class__("Deployment", "<b onclick=x>\u202e", "shop")
    batch = make.identity("b", pod="batch-1", owner=evil)
    await bus.publish(INVENTORY, [Record(batch.key, encode_identity(batch))])
    page = await serve(learner)
    await tab.open(page.url)
    await tab.until("document.querySelector('#state').textContent == 'live'")
    assert page.learning.runs == 0, "nobody looks at it yet"
    await tab.click("#tab-workloads")
    await tab.until("document.querySelector('.pick [data-state]')")
    assert "Learning" in await tab.text(".pick")
    assert "unseen" in await tab.text(".pick")
    assert "learnt from the last 30 days" in await tab.text("#learning")
    await tab.click(".pick")
    await tab.until("document.querySelectorAll('#learnt tbody tr').length == 1")
    for word in ("shop/web/web", "Learning", "LAST NEW", "rules"):
        assert word in await tab.text("#learnt")
    # What comes last on a narrow screen is scrolled to.
    await tab.until("document.querySelector('#sheet tbody tr')")
    await tab.click("#learnt .rules")
    await tab.until("document.querySelector('#yaml')")
    cells = await tab.run("[...document.querySelectorAll('#policy tr')].map((one) => [...one.cells].map((cell) => cell.innerText))")  # fmt: skip
    (rule,) = (one for one in cells if one[0] == "file path /srv/a readOnly")
    assert (rule[1], rule[4], rule[5]) == ("9", "web-2, web-c0ffee", "/bin/cat")
    (apart,) = (one for one in cells if one[2] == "/etc/shadow")
    assert apart[0] == "told as Deny"
    said = "It selects shop/<b onclick=x>\\u202e/web too, of which nothing was seen"
    assert (await tab.text("#selects-unseen")).startswith(
        f"{said}: what the policy does not allow would be denied there; "
    )
    assert f"{said}." in await tab.text("#yaml")
    await tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    await tab.click("#copy")
    await tab.until("document.querySelector('#policy [role=status]').textContent == ' copied'")
    copied = await tab.run("navigator.clipboard.readText()")
    assert copied == await tab.run("document.querySelector('#yaml').textContent")
    assert parse(copied.encode(), "page").ok
    await tab.click("#tab-network")
    await tab.until("document.querySelectorAll('#edges tbody tr').length == 2")
    edges = await tab.run("[...document.querySelectorAll('#edges tbody tr')].map((one) => [one.cells[2].innerText, one.cells[8].innerText])")  # fmt: skip
    assert sorted(edges) == [["10.0.0.8", "web"], ["pod/db-0 in shop 10.0.0.9", "no policy"]]
    assert await tab.run("document.querySelectorAll('#map .edge[data-covered=yes]').length") == 1
    assert page.learning.runs == 1
    assert tab.said == []


async def test_a_page_without_a_learner_shows_none(shown):
    await shown.click("#tab-workloads")
    await shown.click(".pick")
    await shown.until("document.querySelector('#sheet table')")
    assert await shown.run("document.querySelector('#learnt').hidden && document.querySelector('#learning').hidden")


async def test_what_a_workload_is_called_stays_text_in_what_was_learnt(store, serve, learner, make, tab):
    names = [*HOSTILE, *BREAKING]
    for number, name in enumerate(names):
        identity = make.identity(f"evil{number}", container_name=name, pod=name, labels={"app": name}, image=name, orchestrated=True, owner=make.identity().owner.__class__("Pod", name, "shop"))  # fmt: skip
        # As the kernel gives paths: no NUL, no slash too many.
        path = "/srv/" + name.replace("//", "/").strip("/").replace("\0", "")
        exe = {"executable": path, "parent": path}
        store.apply([make.summary(0, None, entry(make, 3, resource=path, **exe), entry(make, 4, operation=Operation.EXEC, resource=path, **exe),
                                  entry(make, 3, "Deny", name, resource=path + "x", **exe), identity=identity)], [])  # fmt: skip
    page = await serve(learner)
    await tab.open(f"{page.url}#workloads")
    await tab.until(f"document.querySelectorAll('.pick [data-state]').length == {len(names)}")
    told = {}
    for number in range(len(names)):
        await tab.run(f"document.querySelectorAll('.pick')[{number}].click()")
        await tab.until("document.querySelectorAll('#learnt .rules').length == 1")
        await tab.run("document.querySelector('#learnt .rules').click()")
        await tab.until("document.querySelector('#yaml')")
        await tab.until("document.querySelector('#sheet tbody tr')")
        text = await tab.run("document.querySelector('#yaml').textContent")
        assert text.replace("\n", "").isprintable()
        assert parse(text.encode(), "page").ok
        (document,) = yaml.safe_load_all(text)
        told[document["spec"]["selector"]["matchLabels"]["app"]] = text
        hidden = await tab.run(r"/[\u0000-\u0009\u000b-\u001f\u202a-\u202e\u2066-\u2069]/.test(document.querySelector('#workloads').textContent)")  # fmt: skip
        assert not hidden, "every character that does something is spelled out"
        assert len(await tab.text("#workload-list")) < 20_000, "a name of any length leaves room for others"
    assert set(told) == set(names)
    sheets = [json.loads(page.learning.sheet(line.policy)) for line in page.learning.look().lines]
    assert {one["yaml"] for one in sheets} == set(told.values()), "what is seen is what is copied"
    assert await tab.run("document.title") == "Hauberk"
    assert await tab.run("document.querySelectorAll('main img, main script, main iframe, main svg svg, main a').length") == 0  # fmt: skip
    assert tab.said == []


async def test_a_store_that_cannot_be_learnt_from_is_a_sentence(tmp_path, serve, learner, tab):
    page = await serve(learner)
    for content in (None, b"", b"text" * 99):
        if content is not None:
            (tmp_path / "summary.db").write_bytes(content)
        await tab.open(f"{page.url}#network")
        await tab.until("!document.querySelector('#notice').hidden")
        assert await tab.text("#notice")


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_a_workload_calls_a_file_is_text(page, store, make, tab, name):
    """In every section: a container chooses its paths, arguments, labels, image, addresses of unix sockets."""
    rule = RuleRef(name, name, name, name, 3)
    identity = make.identity("evil", container_name=name, namespace=name, pod=name, labels={"app": name}, image=name, owner=make.identity().owner.__class__("Pod", name, name))  # fmt: skip
    exe = {"executable": name, "resource": name}
    store.apply(
        [make.summary(0, None, entry(make, 3, "Deny", name, rule, **exe), entry(make, 3, operation=Operation.EXEC, **exe),
                      entry(make, 9, **{**connection(name), "executable": name}), identity=identity)],
        [make.alert(1, Resource=name, Source=name, ProcessName=name, PodName=name, NamespaceName=name, PolicyName=name, Rule=name,
                    Message=name, Labels=name, Action=name, Severity=name, Operation=name, Mode="shadow", Count=3)],
    )  # fmt: skip
    await tab.open(page.url)
    await tab.until("document.querySelector('#newest details')")
    await tab.run("document.querySelector('#newest details').open = true")
    await tab.until("document.querySelector('#newest pre')")
    for section, ready in (("now", "#actions li"), ("alerts", "#list details"), ("workloads", ".pick"), ("network", "#edges tbody tr"),
                           ("policies", "#policy-list tbody tr")):  # fmt: skip
        await tab.click(f"#tab-{section}")
        await tab.until(f"document.querySelector({ready!r})")
        if section == "workloads":
            await tab.click(".pick")
            await tab.until("document.querySelector('#sheet tbody tr')")
        assert name in await tab.run(f"document.querySelector('#{section}').textContent"), section
    assert await tab.run("document.title") == "Hauberk"
    assert (
        await tab.run("document.querySelectorAll('main img, main script, main iframe, main svg svg, main a').length")
        == 0
    )
    loaded = await tab.run("performance.getEntriesByType('resource').map((one) => one.name)")
    assert {urlsplit(one).netloc for one in loaded} == {urlsplit(page.url).netloc}
    assert tab.said == []


async def test_names_that_turn_around_are_spelled_out(page, store, make, tab):
    store.apply([], [make.alert(1, Resource="/tmp/\u202egnp.elf", ProcessName="/bin/a\u200bb\x1b[2J")])
    await tab.open(page.url)
    await tab.until("document.querySelector('#newest details')")
    assert "/tmp/\\u202egnp.elf" in await tab.text("#newest")
    assert "/bin/a\\u200bb\\u001b[2J" in await tab.text("#newest")


async def test_markup_could_not_be_made_even_by_mistake(shown):
    """Trusted types: the browser itself refuses strings where markup or script would come of them."""
    refused = (
        "(() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (error) { return error.name; } })()"
    )
    assert await shown.run(refused) == "TypeError"
    await shown.run("document.body.append(Object.assign(document.createElement('p'), {onclick: null}))")
    shown.said.clear()


async def test_another_site_with_our_address_is_refused(page, store, tab):
    """DNS rebinding: the browser resolves every name to 127.0.0.1, as the attacker's server would have it."""
    port = urlsplit(page.url).port
    await tab.open(f"http://evil.example:{port}/api/survey")
    assert "page.names" in await tab.text("body")
    await tab.open(f"http://localhost:{port}/")
    await tab.until("document.querySelector('#state').textContent == 'live'")


async def test_it_comes_back_by_itself(store, serve, make, tab):
    """The server ends and starts again: the browser says what it had and gets what it missed, once."""
    store.apply([], [make.alert(1)])
    page = await serve()
    port = urlsplit(page.url).port
    await tab.open(page.url)
    await tab.until("document.querySelectorAll('#newest details').length == 1")
    await page.close()
    await tab.until("document.querySelector('#state').textContent == 'reconnecting'")
    store.apply([], [make.alert(2), make.alert(3)])
    await serve(port=port)
    await tab.until("document.querySelectorAll('#newest details').length == 3")
    await tab.until("document.querySelector('#state').textContent == 'live'")
    idents = await tab.run("[...document.querySelectorAll('#newest details')].map((one) => Number(one.dataset.ident))")
    assert idents == [3, 2, 1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
async def test_nothing_is_wider_than_the_screen(shown, scheme, width):
    pictures = {}
    for name in TABS:
        await shown.look(width, 900, scheme)
        await shown.click(f"#tab-{name}")
        if name == "workloads":
            await shown.click(".pick")
            await shown.until("document.querySelector('#sheet table')")
        if name in ("network", "policies"):
            await shown.until(f"document.querySelector('#{name} tbody tr')")
        pictures[name] = await shown.look(width, 900, scheme)
        assert await shown.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        assert await shown.run("[...document.querySelectorAll('[role=tab]')].every((one) => one.getBoundingClientRect().right <= innerWidth)")  # fmt: skip
    assert len(set(pictures.values())) == len(TABS)
    ground = await shown.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(245, 246, 248)", "dark": "rgb(17, 21, 26)"}[scheme]
