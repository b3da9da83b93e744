# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend --kubeconfig --pull`: images of private registries with the pull secrets of a real API server, of a registry on loopback."""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_files import BASE, TOP, layout
from image_registry import Registry

from hauberk.cli import main
from hauberk.images.credentials import PullSecret, of_secret
from hauberk.images.references import reference

PLACE = "pulled"
AUTH = base64.b64encode(b"user:secret").decode()


@pytest.fixture(scope="module")
def registries() -> Iterator[tuple[Registry, Registry]]:
    """One that asks who it is, and one that does not."""
    made = Registry(layout(gzip.compress(BASE), TOP)), Registry(layout(gzip.compress(BASE), TOP), public=True)
    yield made
    for one in made:
        one.close()


def deployment(name: str, image: str, **pod: Any) -> dict[str, Any]:
    labels = {"app": name, "formed": "no" if name == "crooked" else "yes"}
    spec = {"containers": [{"name": "app", "image": image}], **pod}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }  # fmt: skip


def secret(name: str, form: str, content: object, namespace: str = PLACE) -> dict[str, Any]:
    key = {"dockerconfigjson": ".dockerconfigjson", "dockercfg": ".dockercfg"}.get(form, "data")
    kind = f"kubernetes.io/{form}" if form.startswith("docker") else form
    data = content if isinstance(content, str) else json.dumps(content)
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "type": kind,
        "data": {key: base64.b64encode(data.encode()).decode()},
    }  # fmt: skip


@pytest.fixture(scope="module")
def workloads(api_server: Any, registries: tuple[Registry, Registry]) -> Any:
    private, public = (f"127.0.0.1:{one.port}" for one in registries)
    image = f"{private}/team/web:1"
    written = {"auth": AUTH}
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
    api_server.apply(
        secret("written", "dockerconfigjson", {"auths": {private: written}}),
        secret("older", "dockercfg", {f"http://{private}": {"auth": base64.b64encode(b"user:wrong").decode()}, f"{private}/team": written}),
        secret("starred", "dockerconfigjson", {"auths": {f"127.0.*.1:{registries[0].port}/team": written}}),
        secret("other", "dockerconfigjson", {"auths": {"127.0.0.1:1": written, "registry.example.com": written}}),
        secret("stale", "dockerconfigjson", {"auths": {private: {"auth": base64.b64encode(b"user:stale").decode()}}}),
        secret("helped", "dockerconfigjson", {"auths": {}, "credHelpers": {private: "mine"}, "credsStore": "mine"}),
        secret("opaque", "Opaque", {"auths": {private: written}}),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller", "namespace": PLACE}, "imagePullSecrets": [{"name": "older"}]},
        deployment("named", image, imagePullSecrets=[{"name": "written"}]),
        deployment("account", image, serviceAccountName="puller"),
        deployment("starred", image, imagePullSecrets=[{"name": "starred"}]),
        deployment("second", image, imagePullSecrets=[{"name": "stale"}, {"name": "other"}, {"name": "written"}]),
        deployment("nameless", image),
        deployment("other", image, imagePullSecrets=[{"name": "other"}]),
        deployment("helped", image, imagePullSecrets=[{"name": "helped"}]),
        deployment("opaque", image, imagePullSecrets=[{"name": "opaque"}]),
        deployment("missing", image, imagePullSecrets=[{"name": "none"}]),
        deployment("crooked", image, imagePullSecrets=[{"name": "../secrets/written"}]),
        deployment("open", f"{public}/team/web:1"),
    )  # fmt: skip
    return api_server


def asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, server: Any, *words: str, token: str = "admin"
) -> tuple[int, list[Any], str]:
    """The policies, and what is said beside them. No word is what nobody may read."""
    capsys.readouterr()
    base = (
        "recommend",
        "-p",
        "package-managers",
        "--platform",
        "amd64",
        "--state",
        str(tmp_path / "state"),
        "-n",
        PLACE,
    )
    code = main([*base, "-c", str(tmp_path / "config.json"), "--kubeconfig", str(server.kubeconfig(token)), *words])
    out, err = capsys.readouterr()
    for text in (out, err, *(one.read_text() for one in tmp_path.rglob("*") if one.is_file())):
        assert not any(word in text for word in (AUTH, "user:secret", "t0ken"))
    return code, list(yaml.safe_load_all(out)), err


@pytest.mark.kubernetes
@pytest.mark.parametrize("name", ["named", "account", "starred", "second"])
def test_an_image_is_read_with_the_secret_that_its_pod_or_account_names(
    capsys: pytest.CaptureFixture[str], nowhere: Path, workloads: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.DEBUG)
    code, bodies, err = asked(capsys, nowhere, workloads, "--pull", "-l", f"app={name}")
    assert (code, err) == (0, "")
    paths = [one["path"] for one in bodies[0]["spec"]["process"]["matchPaths"]]
    assert paths == ["/usr/bin/apk"], "where the image has it"
    assert AUTH not in caplog.text
    assert "user:secret" not in caplog.text


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nameless", ""),
        ("other", ""),
        ("helped", ""),
        ("opaque", "secret pulled/opaque: it holds no credentials of docker"),
        ("missing", "secret pulled/none: there is none"),
        ("crooked", "secret pulled/../secrets/written: Kubernetes takes no such name"),
    ],
)
def test_an_image_that_no_secret_opens_is_told_and_named_wherever_it_lies(
    capsys: pytest.CaptureFixture[str], nowhere: Path, workloads: Any, registries: tuple[Registry, Registry], name: str, why: str,
) -> None:  # fmt: skip
    before = len(registries[0].asked)
    code, bodies, err = asked(capsys, nowhere, workloads, "--pull", "-l", f"app={name}")
    assert code == 0
    assert "execname" in str(bodies)
    lines = err.splitlines()
    assert len(lines) == (2 if why else 1), err
    assert why in lines[0]
    assert "1 image could not be read (`127.0.0.1:" in lines[-1]
    assert "it refuses (401)" in lines[-1]
    assert {given for _, given in registries[0].asked[before:]} == {""}, "credentials of another registry stay"
    assert not (nowhere / "ran").exists(), "no program of this machine is named by a secret"


@pytest.mark.kubernetes
def test_refused_rights_are_one_sentence_and_other_images_go_on(
    capsys: pytest.CaptureFixture[str], nowhere: Path, workloads: Any
) -> None:
    rules = [{"apiGroups": ["", "apps", "batch"], "resources": ["*"], "verbs": ["list"]}]
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    workloads.apply(
        {**kind, "kind": "ClusterRole", "metadata": {"name": PLACE}, "rules": rules},
        {
            **kind, "kind": "ClusterRoleBinding", "metadata": {"name": PLACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": PLACE},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "watcher"}],
        },
    )  # fmt: skip
    try:
        code, bodies, err = asked(capsys, nowhere, workloads, "--pull", "-l", "formed=yes", token="watcher")
        assert code == 0
        found = {one["metadata"]["name"]: str(one["spec"]["process"]) for one in bodies}
        assert "/usr/bin/apk" in found["open-app-package-managers"]
        assert "execname" in found["named-app-package-managers"]
        secrets, images = err.splitlines()
        assert "of the cluster's pull secrets could not be read (" in secrets
        assert 'User "watcher" cannot get resource' in secrets
        assert "1 image could not be read" in images
        _, _, err = asked(capsys, nowhere, workloads, token="watcher")
        assert err == "", "without --pull no secret is asked for"
    finally:
        workloads.kubectl("delete", "clusterrolebinding,clusterrole", PLACE)


@pytest.mark.parametrize(
    ("entry", "image", "given"),
    [
        ("*.example.com", "eu.example.com/a/b", True),
        ("*.example.com", "a.eu.example.com/a/b", False),
        ("*.example.com", "example.com/a/b", False),
        ("https://*.example.com/a", "eu.example.com/a/b", True),
        ("*.example.com/a", "eu.example.com/ab", False),
        ("*.example.com", "eu.example.com:5000/a", False),
        ("*.example.com:5000", "eu.example.com:5000/a", True),
        ("*.example.com/v2/", "eu.example.com/a", True),
        ("*", "eu.example.com/a", False),
        ("eu.example.com", "eu.example.com/a", True),
        ("eu.example.com", "example.com/a", False),
        ("docker.io", "nginx", True),
    ],
)
def test_which_entry_of_a_secret_is_for_an_image(entry: str, image: str, given: bool) -> None:
    made = PullSecret(name="secret a/b", auths={entry: {"auth": AUTH}, "other.example.org": {"auth": "x"}, "bad": 5})
    assert (of_secret(made, reference(image)) is not None) == given
    assert AUTH not in repr(made)
