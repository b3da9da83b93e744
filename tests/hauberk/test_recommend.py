# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend`: images read as a container sees them, manifests, recorded behaviour, reports; hostile archives refused in a sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import cramjam
import pytest
import yaml
from image_files import BASE, TOP, digest, folder, layout, member, saved, symlink, tarred, written
from recommending import run

from hauberk.images.archives import read_path
from hauberk.images.layers import LayerReader
from hauberk.images.streams import ImageLimits
from policy.parse import parse
from policy.recommend.contents import Distribution
from schemas.behaviour import Behaviour
from schemas.errors import SettingsError
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    "form",
    [
        "layout",
        "tar of a layout",
        "docker save",
        "docker save, gzip",
        "tar of a layout, zstd",
        "gzip",
        "zstd",
        "gzip in two members",
    ],
)
def test_an_image_is_read_as_a_container_sees_it(tmp_path: Path, form: str) -> None:
    layers = {
        "gzip": (gzip.compress(BASE), gzip.compress(TOP)), "zstd": (bytes(cramjam.zstd.compress(BASE)), bytes(cramjam.zstd.compress(TOP))),
        "gzip in two members": (gzip.compress(BASE[:700]) + gzip.compress(BASE[700:]), TOP),
    }.get(form, (BASE, TOP))  # fmt: skip
    path = tmp_path / "image"
    if form.startswith("docker save"):
        saved(path)
    elif form.startswith("tar of a layout"):
        path.write_bytes(tarred(*(member(name, data) for name, data in layout(*layers).items())))
    else:
        written(path, layout(*layers))
    if form.endswith(", gzip"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    if form.endswith(", zstd"):
        path.write_bytes(bytes(cramjam.zstd.compress(path.read_bytes())))
    (image,) = read_path(path, "amd64")
    contents = image.contents
    assert contents.distribution == Distribution("wolfi", "20230201", "Wolfi")
    assert not contents.has("/usr/bin/gone"), "a whiteout"
    assert [contents.has(f"/var/old/{name}") for name in ("a", "b", "new")] == [False, False, True], (
        "an opaque directory"
    )
    assert contents.resolve("/bin/nc") == "/usr/bin/nc", "unpacked through the symlink of the layer below"
    assert contents.resolve("/usr/bin/tool") == "/usr/bin/nc"
    assert not contents.has("/etc/ssl/cert.pem"), "a file took the directory's place"
    assert contents.programs(["hard"])[0] == [], "it is the application by another name"
    assert contents.programs(["curl", "apk"]) == (["/usr/bin/apk", "/usr/bin/curl"], [])
    assert {"curl", "/usr/bin/app"} <= set(image.commands)


def test_zstandard_of_many_pieces_is_what_the_tool_packed(tmp_path: Path) -> None:
    """Packed by zstd itself where it is; read in pieces of 64 KB."""
    data = tarred(*(member(f"f{number}", bytes([number % 251]) * 5000) for number in range(300)))
    packed = bytes(cramjam.zstd.compress(data))
    (tmp_path / "x").write_bytes(packed)
    reader = LayerReader()
    with (tmp_path / "x").open("rb") as file:
        reader.add(file, "x", digest(packed))
    assert len(reader.contents().entries) == 300
    with (
        (tmp_path / "x").open("rb") as file,
        pytest.raises(SettingsError, match="frame is not whole"),
    ):
        LayerReader().add(io.BytesIO(file.read()[:-20]), "x")


HOSTILE = {
    "a name that leaves the image": (tarred(member("../../etc/passwd")), "names inside of the image"),
    "a hard link that leaves it": (tarred(member("x", kind=tarfile.LNKTYPE, link="../../etc/shadow")), "names inside of the image"),
    "a hard link to nothing": (tarred(member("x", kind=tarfile.LNKTYPE, link="y")), "is none"),
    "a symlink to a long nothing": (tarred(symlink("x", "a/" * 5000)), "lead somewhere"),
    "directories in one another without end": (tarred(member("a/" * 1000 + "x")), "names inside of the image"),
    "zeros that grow a thousand times": (gzip.compress(bytes(70 << 20), 9), "made to fill a machine"),
    "no archive": (b"not a tar at all, only some text that goes on" * 40, "to be a tar archive"),
    "half a gzip": (gzip.compress(BASE)[:200], "expected"),
    "a header of a gigabyte": (tarfile.TarInfo("x").tobuf()[:0] + (lambda one: (setattr(one, "type", tarfile.XHDTYPE), setattr(one, "size", 1 << 30), one.tobuf(tarfile.USTAR_FORMAT))[2])(tarfile.TarInfo("h")) + bytes(4096), "expected a header of at most"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_hostile_layers_are_refused_in_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str
) -> None:
    layer, says = HOSTILE[what]
    out = tmp_path / "out"
    said = run(
        capsys,
        tmp_path / "state",
        "-i",
        written(tmp_path / "image", layout(layer)),
        "--platform",
        "amd64",
        "-o",
        out,
        "-r",
        out / "r.html",
        code=2,
    )
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not out.exists(), "nothing half written"


CONFIGURATIONS: list[Any] = [
    [], {"os": ["linux"]}, {"config": [1]}, {"config": {"Entrypoint": 5}}, {"config": {"Cmd": [5]}}, {"config": {"Healthcheck": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("made", CONFIGURATIONS, ids=str)
def test_a_configuration_that_is_none_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, made: Any
) -> None:
    image = written(tmp_path / "image", layout(BASE, config=made))
    said = run(capsys, tmp_path / "state", "-i", image, "--platform", "amd64", code=2)
    assert "expected the configuration of" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("index.json", "[]"), ("index.json", '{"manifests": [5]}'), ("index.json", '{"manifests": [{"annotations": [1]}]}'),
        ("index.json", '{"manifests": [{"platform": "linux"}]}'), ("manifest.json", '[{"Config": 5, "Layers": []}]'),
        ("manifest.json", '[{"Config": "c", "Layers": [5]}]'), ("manifest.json", '[{"Config": "c", "Layers": [], "RepoTags": 5}]'),
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / "x.tar").write_bytes(tarred(member(name, text.encode())))
    said = run(capsys, tmp_path / "state", "-i", tmp_path / "x.tar", code=2)
    assert f"expected {name} of" in said
    assert len(said.strip().splitlines()) == 1


def test_symlinks_lead_up_to_the_root_and_not_beyond() -> None:
    """Of `/bin/x -> ../opt/x` the first two steps are the root, as many more as there are."""
    some = [folder("opt"), folder("bin"), folder("usr"), folder("usr/bin"), member("opt/apk"), symlink("bin/apk", "../opt/apk"),
            symlink("usr/bin/apk", "../../../../opt/apk"), folder("lib"), folder("etc"), member("lib/release", b"ID=far\n"), symlink("lib/a", "../etc/../lib/release")]  # fmt: skip
    reader = LayerReader()
    reader.add(io.BytesIO(tarred(*some)), "x")
    contents = reader.contents()
    assert contents.resolve("/bin/apk") == contents.resolve("/usr/bin/apk") == "/opt/apk"
    assert contents.resolve("/lib/a") == "/lib/release"
    assert contents.programs(["apk"]) == (["/opt/apk"], [])


def test_an_archive_of_many_images_is_bounded(tmp_path: Path) -> None:
    """Of one large image an index may name a hundred thousand."""
    files = layout(BASE)
    index = json.loads(files["index.json"])
    index["manifests"] *= 300
    files["index.json"] = json.dumps(index).encode()
    with pytest.raises(SettingsError, match="at most 256 images"):
        read_path(written(tmp_path / "image", files), "amd64")
    entry = {"Config": "c.json", "Layers": []}
    (tmp_path / "x.tar").write_bytes(
        tarred(member("c.json", b"{}"), member("manifest.json", json.dumps([entry] * 300).encode()))
    )
    with pytest.raises(SettingsError, match="at most 256 images"):
        read_path(tmp_path / "x.tar")


def test_symlinks_that_were_made_to_take_hours_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long = "../b/" * 800
    links = [symlink(f"b/l{number}", f"{long}l{number + 1}") for number in range(39)]
    some = [folder("b"), *links, member("b/l39"), *(symlink(f"b/x{number}", f"{long}l0") for number in range(60))]
    image = written(tmp_path / "image", layout(gzip.compress(tarred(*some))))
    said = run(capsys, tmp_path / "state", "-i", image, "--platform", "amd64", "-o", tmp_path / "out", code=2)
    assert "expected symlinks that lead somewhere" in said
    assert not (tmp_path / "out").exists()
    # Directories below them are asked for by each layer; all layers share what they may take.
    above = tarred(*(member(f"b/x{number}/y") for number in range(60)))
    reader = LayerReader()
    reader.add(io.BytesIO(tarred(*some)), "x")
    with pytest.raises(SettingsError, match="expected symlinks that lead somewhere"):
        reader.add(io.BytesIO(above), "y")


def test_an_image_that_a_thousand_containers_run_is_asked_a_thousand_times() -> None:
    reader = LayerReader()
    reader.add(io.BytesIO(BASE), "x")
    contents = reader.contents()
    assert all(contents.has("/etc/os-release") and contents.programs(["apk"])[0] for _ in range(200_000))


def test_an_archive_that_leads_back_to_its_beginning_ends(tmp_path: Path) -> None:
    """A member of negative length: tarfile reads the same header again and again (CVE-2025-8194 and before it)."""
    made = tarfile.TarInfo("x")
    header = bytearray(made.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (0x10000 - 512).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = tarfile.TarInfo("first").tobuf(tarfile.GNU_FORMAT) + bytes(header) + bytes(1024)
    with pytest.raises(SettingsError):
        LayerReader().add(io.BytesIO(data), "x")
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SettingsError, match=r"more than 5120 files|neither"):
        read_path(tmp_path / "x.tar")


def test_a_device_or_a_pipe_is_no_program_and_hides_what_was_there() -> None:
    """Images of some distributions have a few below /dev; nothing is unpacked, so they do no harm."""
    reader = LayerReader()
    reader.add(io.BytesIO(BASE), "x")
    some = [
        member("dev/null", kind=tarfile.CHRTYPE),
        member("usr/bin/curl", kind=tarfile.BLKTYPE),
        member("usr/bin/apk", kind=tarfile.FIFOTYPE),
    ]
    reader.add(io.BytesIO(tarred(*some)), "x")
    contents = reader.contents()
    assert contents.programs(["curl", "apk", "null"]) == ([], [])
    assert contents.has("/dev/null")


def test_names_that_no_policy_can_write_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    layer = tarred(folder("opt"), member("opt/\udcff/curl"), member("opt/a\x1b[31m\n/nc"), member("usr/bin/wget"))
    image = written(tmp_path / "image", layout(layer, config={"os": "linux", "architecture": "amd64"}))
    out = tmp_path / "out"
    for form in ("html", "json", "txt", "sarif"):
        run(capsys, tmp_path / "state", "-i", image, "--platform", "amd64", "-o", out, "-r", out / f"r.{form}")
    assert "a path that no policy can write: not blocked" in (out / "r.txt").read_text()
    assert "\x1b" not in (out / "r.txt").read_text() + run(
        capsys, tmp_path / "state", "-i", image, "--platform", "amd64"
    )
    (found,) = out.glob("*/web-download-tools.yaml")
    assert yaml.safe_load(found.read_text())["spec"]["process"] == {"matchPaths": [{"path": "/usr/bin/wget"}]}


def test_two_workloads_never_share_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`web` with `api-proxy` and `web-api` with `proxy` read the same once they are joined."""
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, labels: {{app: {}}}}}\nspec: {{containers: [{{name: {}, image: x}}]}}\n"
    file = tmp_path / "m.yaml"
    file.write_text("---\n".join([pod.format("web", "a", "api-proxy"), pod.format("web-api", "b", "proxy"), pod.format("z", "z", "z"), pod.format("z", "z", "z")]))  # fmt: skip
    written_ = run(capsys, tmp_path / "state", "-f", file, "-p", "netcat", "-o", tmp_path / "out").split()
    assert len(written_) == len(set(written_)) == 3
    assert f"{tmp_path}/out/default/z-netcat.yaml" in written_, "the same twice is one"
    labels = [yaml.safe_load(Path(path).read_text())["spec"]["selector"]["matchLabels"]["app"] for path in written_]
    assert sorted(labels) == ["a", "b", "z"]
    file.write_text("---\n".join([pod.format("web-api", "b", "proxy"), pod.format("web", "a", "api-proxy"), pod.format("z", "z", "z")]))  # fmt: skip
    again = run(capsys, tmp_path / "state", "-f", file, "-p", "netcat", "-o", tmp_path / "out").split()
    assert sorted(again) == sorted(written_), "whatever the order"


def test_limits_and_digests() -> None:
    with pytest.raises(SettingsError, match="at most 100 bytes of names"):
        LayerReader(ImageLimits(name_bytes=100)).add(io.BytesIO(BASE), "x")
    with pytest.raises(SettingsError, match="at most 1,000 bytes"):
        LayerReader(ImageLimits(plain_bytes=1000)).add(io.BytesIO(BASE), "x")
    with pytest.raises(SettingsError, match="at most 5 names"):
        LayerReader(ImageLimits(names=5)).add(io.BytesIO(BASE), "x")
    with pytest.raises(SettingsError, match="damaged or not what it says"):
        LayerReader().add(io.BytesIO(BASE), "x", digest(b"other"))


def test_policies_replay_and_reports_of_an_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = written(tmp_path / "image", layout(gzip.compress(BASE), TOP))
    state = tmp_path / "state"
    text = run(capsys, state, "-i", image, "--platform", "amd64")
    parsed = parse(text, "recommended")
    assert not [one for one in parsed.diagnostics if one.level == "error"]
    by_name = {one.name: json.loads(one.raw) for one in parsed.policies}
    assert by_name["web-package-managers"]["spec"]["process"]["matchPaths"] == [{"path": "/usr/bin/apk"}]
    assert "web-netcat" not in by_name, "nc is also `tool` here"
    assert "web-download-tools" not in by_name, "the health check runs curl"
    assert "0 of 2 recorded behaviours would have been denied" in text
    assert "it would block exec of /usr/bin/curl" in run(capsys, state, "-i", image, "--platform", "amd64", "-r", "-")
    for ending in ("txt", "html", "json", "sarif"):
        run(capsys, state, "-i", image, "--platform", "amd64", "-r", tmp_path / f"r.{ending}", "-o", tmp_path / "out")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["workloads"][0]["coverage"]["MITRE"]["covered"] > 20
    sarif = json.loads((tmp_path / "r.sarif").read_text())
    assert sarif["version"] == "2.1.0"
    rules = sarif["runs"][0]["tool"]["driver"]["rules"]
    assert all(rules[one["ruleIndex"]]["id"] == one["ruleId"] for one in sarif["runs"][0]["results"])
    (place,) = sarif["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == str(image), "GitHub shows no finding without a file"
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "default/web/web"
    assert "<h2>default/web/web: registry.example/team/web:1, Wolfi</h2>" in (tmp_path / "r.html").read_text()
    assert len(list((tmp_path / "out/default").iterdir())) == len(by_name)
    only = run(capsys, state, "-i", image, "--platform", "amd64", "-t", "T1105")
    assert yaml.safe_load(only)["metadata"]["name"] == "web-package-managers"


MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      initContainers: [{name: prepare, image: other}]
      containers:
      - {name: app, image: registry.example/team/web:1, livenessProbe: {exec: {command: [sh, -c, "/usr/bin/apk --version"]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: <script>alone, namespace: shop, labels: {app: alone}}
spec: {containers: [{name: app, image: x}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: y}]}}}}}
"""


def test_manifests_with_an_image_and_recorded_behaviour(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = written(tmp_path / "image", layout(BASE, TOP))
    manifest = tmp_path / "all.yaml"
    manifest.write_text(MANIFEST)
    state = tmp_path / "state"
    state.mkdir()
    pod = Identity(kind=Kind.CONTAINER, node="n", uid="u", namespace="shop", pod="web-1", container_name="app", image="registry.example/team/web:1",
                   owner=Owner("Deployment", "web", "shop"), labels={"app": "web"}, orchestrated=True)  # fmt: skip
    wrote = Behaviour(
        operation=Operation.OPEN, access=Access.WRITE, resource="/etc/hosts", executable="/usr/bin/app", parent="/init"
    )
    at = time.time_ns() - 10**11
    store = SqliteStore(str(state / "summary.db"))
    entry = SummaryEntry(behaviour=wrote, status="Allow", count=3, first=at, last=at)
    store.apply(
        [
            Summary(
                node="n",
                run="r",
                first_frame=1,
                last_frame=1,
                bucket=at // 10**9 // 60 * 60,
                identity=pod,
                entries=(entry,),
            )
        ],
        [],
    )
    store.close()
    run(
        capsys,
        state,
        "-f",
        manifest,
        "-i",
        image,
        "--platform",
        "amd64",
        "-r",
        tmp_path / "r.json",
        "-o",
        tmp_path / "out",
    )
    found = {
        (one["namespace"], one["name"], one["container"]): one
        for one in json.loads((tmp_path / "r.json").read_text())["workloads"]
    }
    assert set(found) == {
        ("shop", "web", "prepare"),
        ("shop", "web", "app"),
        ("shop", "<script>alone", "app"),
        ("default", "nightly", "job"),
    }
    app = found["shop", "web", "app"]
    left = {one["template"]: one["reason"] for one in app["leftOut"]}
    assert left["name-resolution"] == "it would block open of /etc/hosts by /usr/bin/app, seen 3 times"
    assert "apk" in left["package-managers"], "a probe runs it"
    assert (app["behaviours"], app["denied"]) == (4, 0)
    assert app["policies"][0]["policy"]["spec"]["selector"]["matchLabels"] == {
        "app": "web",
        "kubearmor.io/container.name": "[app]",
    }
    run(capsys, state, "-f", manifest, "-r", tmp_path / "r.html", "-o", tmp_path / "out")
    assert "<script>" not in (tmp_path / "r.html").read_text()
    # What runs, without manifest or image.
    recorded = run(capsys, state, "-n", "shop", "-p", "netcat")
    assert {"execname": "nc"} in yaml.safe_load(recorded)["spec"]["process"]["matchPaths"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {{ .Values.x }}", "line 1 has a template in it; render it first"), ("a: [", "expected YAML"), ("kind: Service", "found none"),
        ("kind: Pod\nmetadata: {name: x}", "not formed"),
        ('kind: Pod\nmetadata: {name: "{{ .Values.x }}"}\nspec: {containers: [{name: c}]}', "line 2 has a template in it"),
        ("\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "kind: Pod", "metadata: {name: *a59}",
                    "spec: {containers: [{name: c}]}"]), "expected a word, got a list"),
        ("\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "kind: Pod", "metadata: {name: x}",
                    "spec: {containers: [{name: c, command: [*a59]}]}"]), "expected a word, got a list"),
    ],
)  # fmt: skip
def test_bad_manifests_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    said = run(capsys, tmp_path / "state", "-f", file, code=2)
    assert says in said
    assert len(said.strip().splitlines()) == 1


def laughs(first: str, each: str) -> str:
    """A document that is 9 to the 9th times `first` (a "billion laughs")."""
    rows = ["defs:", f"- &a0 {first}"]
    rows += [f"- &a{level} {each % ', '.join([f'*a{level - 1}'] * 9)}" for level in range(1, 10)]
    return "\n".join(rows)


POD = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: c, image: i}]}}"


@pytest.mark.parametrize(
    "text",
    [
        f"{laughs(POD, '{kind: List, items: [%s]}')}\nkind: List\nitems: [*a9]",
        f"{laughs('{kind: List, items: []}', '{kind: List, items: [%s]}')}\nkind: List\nitems: [*a9]",
        "big: &big " + "x" * 100_000 + "\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c, command: [" + "*big, " * 500 + "]}]}",
        "pod: &pod {kind: Pod, metadata: {name: x, labels: {" + ", ".join(f"k{n}: {'v' * 2000}" for n in range(50)) + "}}, spec: {containers: [{name: c}]}}\n"
        "kind: List\nitems: [" + "*pod, " * 5000 + "]",
        "c: &c {name: c}\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [" + "*c, " * 100_001 + "]}",
    ],
    ids=["pods", "nothing", "words", "labels", "containers"],
)  # fmt: skip
def test_what_aliases_come_to_is_bounded(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    said = run(capsys, tmp_path / "state", "-f", tmp_path / "m.yaml", "-p", "miners", "-o", tmp_path / "out", code=2)
    assert "expected at most" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_braces_of_others_in_a_rendered_manifest_are_no_template(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "kind: ConfigMap\nmetadata: {name: alerts}\ndata: {text: '{{ $labels.pod }} is down'}\n---\n"
        "kind: Pod\nmetadata: {name: x, labels: {app: x}}\nspec: {containers: [{name: c, image: y, args: ['{{.ID}}']}]}\n"
    )
    assert "name: x-c-netcat" in run(capsys, tmp_path / "state", "-f", file, "-p", "netcat")


def test_bad_images_and_words_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    for words, says in (
        (("-i", tmp_path / "text"), "a file that is neither"),
        (("-i", tmp_path / "empty"), "No such file"),
        (("-i", "/nowhere.tar"), "there is nothing"),
        (("-i", "not an image"), "expected a file or an image such as"),
        (("-i", "127.0.0.1:1/x"), "expected an answer of the registry 127.0.0.1:1"),
        ((), "got none of them"),
        (("-p", "nothing"), "expected names of templates"),
        (("-t", "nothing"), "expected a framework"),
        (("update",), "got no path"),
        (("update", tmp_path / "text"), "expected a file of templates"),
        (("update", tmp_path / "empty"), "found none"),
    ):  # fmt: skip
        said = run(capsys, tmp_path / "state", *words, code=2)
        assert says in said, said
        assert len(said.strip().splitlines()) == 1


def test_of_images_alone_namespace_and_labels_say_where_they_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = written(tmp_path / "image", layout(BASE, TOP))
    words = ("-i", image, "--platform", "amd64", "-p", "miners")
    body = yaml.safe_load(run(capsys, tmp_path / "state", *words, "-n", "shop"))
    assert body["metadata"]["namespace"] == "shop"
    assert body["spec"]["selector"]["matchLabels"] == {"kubearmor.io/container.name": "[web]"}
    body = yaml.safe_load(run(capsys, tmp_path / "state", *words, "-l", "app=web,tier=front"))
    assert body["spec"]["selector"]["matchLabels"] == {"app": "web", "tier": "front"}


def test_a_manifest_without_a_namespace_is_for_the_one_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As `kubectl apply -n` takes it; one that is written chooses."""
    file = tmp_path / "all \u00e4.yaml"
    file.write_text(MANIFEST)
    words = ("-f", file, "-p", "miners")
    run(capsys, tmp_path / "state", *words, "-r", tmp_path / "r.sarif")
    results = json.loads((tmp_path / "r.sarif").read_text())["runs"][0]["results"]
    uris = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in results}
    assert uris == {f"{tmp_path}/all%20%C3%A4.yaml"}
    for namespace, names in (("bank", ["nightly"]), ("shop", ["<script>alone", "nightly", "web", "web"])):
        run(capsys, tmp_path / "state", *words, "-n", namespace, "-r", tmp_path / "r.json")
        found = json.loads((tmp_path / "r.json").read_text())["workloads"]
        assert sorted(one["name"] for one in found) == names
        assert {one["namespace"] for one in found} == {namespace}


def test_a_report_is_written_after_policies_and_without_any(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All left out is an answer too, with its reasons; and no report says what an `-o` that failed never wrote."""
    image = written(tmp_path / "image", layout(BASE, TOP))
    state, report = tmp_path / "state", tmp_path / "report.json"
    words = ("-i", image, "--platform", "amd64", "-r", report)
    (tmp_path / "file").write_text("here first")
    assert "expected a directory to write policies to" in run(capsys, state, *words, "-o", tmp_path / "file", code=2)
    assert not report.exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "default").write_text("a file where the namespace's directory would be")
    assert "expected a directory" in run(capsys, state, *words, "-o", tmp_path / "out", code=2)
    assert not report.exists()
    assert "is a directory" in run(capsys, state, "-i", image, "-r", tmp_path / "out", code=2)
    for place, says in (
        (tmp_path / "r.pdf", "a report that ends in"),
        ("/proc/nowhere/r.html", "expected to write"),
        (tmp_path / "file/r.txt", "expected to write"),
    ):
        said = run(capsys, state, "-i", image, "--platform", "amd64", "-o", tmp_path / "none", "-r", place, code=2)
        assert says in said
        assert not (tmp_path / "none").exists(), "no policies where there can be no report"
    state.mkdir()
    pod = Identity(kind=Kind.CONTAINER, node="n", uid="u", namespace="shop", container_name="app", owner=Owner("Deployment", "web", "shop"),
                   orchestrated=True)  # fmt: skip
    wrote = Behaviour(
        operation=Operation.OPEN, access=Access.WRITE, resource="/etc/passwd", executable="/usr/bin/app", parent="/init"
    )
    at = time.time_ns() - 10**11
    store = SqliteStore(str(state / "summary.db"))
    entries = (SummaryEntry(behaviour=wrote, status="Allow", count=3, first=at, last=at),)
    store.apply([Summary(node="n", run="r", first_frame=1, last_frame=1, bucket=at // 10**9 // 60 * 60, identity=pod, entries=entries)], [])  # fmt: skip
    store.close()
    name = next(
        left["template"]
        for left in json.loads(_reported(capsys, state, report, code=0))["workloads"][0]["leftOut"]
        if "/etc/passwd" in left["reason"]
    )
    report.unlink()
    (workload,) = json.loads(_reported(capsys, state, report, "-p", name, code=1))["workloads"]
    assert not workload["policies"]
    assert [left["template"] for left in workload["leftOut"]] == [name]
    assert "left out" in run(capsys, state, "-p", name, "-r", "-", code=1)


def _reported(capsys: pytest.CaptureFixture[str], state: Path, report: Path, *words: object, code: int) -> str:
    run(capsys, state, "-r", report, *words, code=code)
    return report.read_text()


def archive_of(body: str) -> bytes:
    return tarred(member("t/a.yaml", f"version: '2999.1.2'\n{body}".encode()))


def zipped(name: str, data: bytes, *, flags: int = 0) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    made = bytearray(held.getvalue())
    made[made.index(b"PK\x01\x02") + 8] |= flags
    made[6] |= flags
    return bytes(made)


ARCHIVES = {
    "a tar that leaves itself": (tarred(member("../../x.yaml", b"a")), "names inside of the archive"),
    "a zip that leaves itself": (zipped("a/../../x.yaml", b"a"), "names inside of the archive"),
    "a zip for another system": (zipped("..\\x.yaml", b"a"), "names inside of the archive"),
    "an absolute name": (tarred(member("/etc/x.yaml", b"a")), "names inside of the archive"),
    "a link": (tarred(symlink("x.yaml", "/etc/passwd")), "found none"),
    "a large text in a zip": (zipped("x.yaml", bytes(5 << 20)), "at most 4,194,304 bytes in `x.yaml`"),
    "a large text in a tar": (gzip.compress(tarred(member("x.yaml", bytes(5 << 20)))), "at most 4,194,304 bytes in `x.yaml`"),
    "a tar that grows": (gzip.compress(tarred(member("x.bin", bytes(70 << 20)), member("x.yaml", b"a"))), "got more"),
    "an xz that grows": (lzma.compress(tarred(member("x.bin", bytes(70 << 20)))), "got more"),
    "many names": (tarred(*(member(f"{number}.txt") for number in range(1001))), "at most 1000 files"),
    "a password": (zipped("x.yaml", b"a", flags=1), "encrypted"),
    "half a zip": (zipped("x.yaml", b"a" * 500)[:60], "not a zip file"),
    "half a gzip": (gzip.compress(tarred(member("x.yaml", b"a")))[:40], "ends too early"),
    "no tar inside": (gzip.compress(b"hello" * 500), "expected templates at"),
    "no texts": (tarred(member("x.yaml", b"\xff\xfe")), "expected a file of templates"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(ARCHIVES))
def test_hostile_archives_of_templates_are_refused_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str
) -> None:
    data, says = ARCHIVES[what]
    (tmp_path / "a").write_bytes(data)
    said = run(capsys, tmp_path / "state", "update", tmp_path / "a", code=2)
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "state").exists(), "nothing half written"


def test_templates_are_updated_whole_and_never_backwards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    body = "templates: [{name: mine, title: Mine, why: It is., severity: 5, action: Block, closed: ['/x!']}]"
    new, old = tmp_path / "new", tmp_path / "old.yaml"
    new.mkdir()
    (new / "a.yaml").write_text(f"version: '2999.1.1'\n{body}")
    old.write_text(f"version: '2001.1.1'\n{body}")
    state = tmp_path / "state"
    assert "or newer" in run(capsys, state, "update", old, code=2)
    assert run(capsys, state, "update", new).startswith("1 templates of 2999.1.1, before 70")
    image = written(tmp_path / "image", layout(BASE))
    assert yaml.safe_load(run(capsys, state, "-i", image, "--platform", "amd64"))["metadata"]["name"] == "web-mine"
    archive = tmp_path / "t.tar.gz"
    archive.write_bytes(gzip.compress(tarred(member("t/a.yaml", f"version: '2999.1.2'\n{body}".encode()))))
    assert "2999.1.2" in run(capsys, state, "update", archive)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("t-main/README.md", "no template")
        made.writestr("t-main/deep/a.yml", f"version: '2999.1.2'\n{body}")
    for data in (
        packed.getvalue(),
        *(
            pack(archive_of(body))
            for pack in (bz2.compress, lzma.compress, lambda one: bytes(cramjam.zstd.compress(one)))
        ),
    ):
        archive.write_bytes(data)
        assert run(capsys, state, "update", archive).startswith("1 templates of 2999.1.2, before 1")
    (new / "below").mkdir()
    (new / "below/b.yaml").write_text(f"version: '2999.1.3'\n{body}")
    assert "got `mine` again" in run(capsys, state, "update", new, code=2)
    (new / "below/b.yaml").write_text("version: '2999.1.3'\ntemplates: [{name: bad}]")
    assert "missing required field" in run(capsys, state, "update", new, code=2)
    assert "web-mine" in run(capsys, state, "-i", image, "--platform", "amd64")
