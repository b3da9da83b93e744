# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend -f FILE --pull`: images of private registries with the pull secrets that lie in the manifest files, of a registry on loopback."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_files import BASE, TOP, layout
from image_registry import Registry

from hauberk.cli import main
from hauberk.manifests import manifests

AUTH = base64.b64encode(b"user:secret").decode()
WRONG = base64.b64encode(b"user:wrong").decode()
BESIDE = "registries are asked without it: give the file of the Secret too (-f), or log in with docker or name a configuration of docker that has the credentials (--config)"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    made = Registry(layout(gzip.compress(BASE), TOP))
    yield made
    made.close()


@pytest.fixture
def host(registry: Registry) -> str:
    return f"127.0.0.1:{registry.port}"


def deployment(host: str, namespace: str | None = "shop", name: str = "web", **pod: Any) -> dict[str, Any]:
    labels = {"app": name}
    spec = {"containers": [{"name": "app", "image": f"{host}/team/web:1"}], **pod}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }  # fmt: skip


def secret(
    name: str, content: Any, namespace: str | None = "shop", form: str = "dockerconfigjson", **more: Any
) -> dict[str, Any]:
    text = content if isinstance(content, str) else json.dumps(content)
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
        "type": f"kubernetes.io/{form}", "data": {f".{form}": base64.b64encode(text.encode()).decode()}, **more,
    }  # fmt: skip


def account(name: str, *secrets: str) -> dict[str, Any]:
    named = [{"name": one} for one in secrets]
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": "shop"},
        "imagePullSecrets": named,
    }


NAMED = {"imagePullSecrets": [{"name": "regcred"}]}
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], nowhere: Path) -> Ask:
    """Runs it on files of these objects, each of its own; no word is what nobody may read."""

    def ask(*objects: dict[str, Any] | str, words: tuple[str, ...] = ("--pull",)) -> tuple[int, str, str]:
        capsys.readouterr()
        given: list[str] = []
        for number, one in enumerate(objects):
            path = nowhere / f"{number}.yaml"
            path.write_text(one if isinstance(one, str) else yaml.safe_dump(one))
            given += ["-f", str(path)]
        usual = ["-p", "package-managers", "--platform", "amd64", "--state", str(nowhere / "state")]
        code = main(["recommend", *usual, "--config", str(nowhere / "config.json"), *given, *words])
        out, err = capsys.readouterr()
        assert not any(word in out + err for word in (AUTH, WRONG, "user:secret", "t0ken", "hidden"))
        assert not (nowhere / "ran").exists(), "no program of this machine is named by a secret"
        return code, out, err

    return ask


def opened(said: tuple[int, str, str]) -> bool:
    code, out, err = said
    assert (code, err) == (0, ""), said
    paths = [one["path"] for one in yaml.safe_load(out)["spec"]["process"]["matchPaths"]]
    return paths == ["/usr/bin/apk"]


def test_an_image_is_read_with_the_secret_in_the_files(ask: Ask, host: str) -> None:
    """Whichever form it has, before or after the workload, of the pod or of its service account."""
    good = {"auths": {host: {"auth": AUTH}}}
    pod = deployment(host, **NAMED)
    assert opened(ask(pod, secret("regcred", good)))
    assert opened(ask(secret("regcred", good), pod))
    assert opened(ask(pod, secret("regcred", good["auths"], form="dockercfg")))
    text = json.dumps(good)
    assert opened(ask(pod, secret("regcred", {}, stringData={".dockerconfigjson": text})))
    lines = base64.encodebytes(text.encode()).decode()
    assert opened(ask(pod, secret("regcred", {}, data={".dockerconfigjson": lines}))), (
        "base64 in lines, as YAML may have it"
    )
    assert opened(ask({"apiVersion": "v1", "kind": "List", "items": [secret("regcred", good), pod]}))
    assert opened(ask(pod, secret("regcred", {"auths": {host: {"auth": WRONG}}}), secret("regcred", good))), (
        "the later counts"
    )
    assert opened(
        ask(deployment(host, serviceAccountName="puller"), account("puller", "regcred"), secret("regcred", good))
    )
    assert opened(ask(deployment(host), account("default", "regcred"), secret("regcred", good)))
    several = {"imagePullSecrets": [{"name": "stale"}, {"name": "regcred"}]}
    stale = secret("stale", {"auths": {host: {"auth": WRONG}}})
    assert opened(ask(deployment(host, **several), stale, secret("regcred", good)))


def test_what_has_no_namespace_is_where_n_says(ask: Ask, host: str) -> None:
    good = {"auths": {host: {"auth": AUTH}}}
    assert opened(ask(deployment(host, None, **NAMED), secret("regcred", good, None)))
    assert opened(ask(deployment(host, None, **NAMED), secret("regcred", good), words=("--pull", "-n", "shop")))
    assert opened(ask(deployment(host, **NAMED), secret("regcred", good, None), words=("--pull", "-n", "shop")))
    code, _, err = ask(deployment(host, **NAMED), secret("regcred", good, None))
    assert code == 2
    assert "secret shop/regcred: the files have one of this name in the namespace `default`" in err


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "it is in none of the files"),
        ([secret("regcred", {"credHelpers": {"HOST": "mine"}, "credsStore": "mine"})], "it holds no credentials of docker"),
        ([secret("regcred", "hidden")], "it holds no credentials of docker"),
        ([secret("regcred", {}, type="Opaque")], "it holds no credentials of docker"),
        ([secret("regcred", {}, data="hidden")], "it holds no credentials of docker"),
        ([secret("regcred", {}, data={".dockerconfigjson": "ENC[hidden]"})], "it holds no credentials of docker"),
        ([secret("regcred", {}, data={".dockerconfigjson": ["hidden"]})], "it holds no credentials of docker"),
        ([secret("regcred", {}, stringData={".dockerconfigjson": "{{ hidden }}"})], "it holds no credentials of docker"),
    ],
)  # fmt: skip
def test_a_secret_that_is_not_there_is_one_sentence(
    ask: Ask, host: str, registry: Registry, given: list[dict[str, Any]], why: str
) -> None:
    before = len(registry.asked)
    code, out, err = ask(deployment(host, **NAMED), *given)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "it refuses (401)" in err
    assert f"1 of the manifests' pull secrets could not be read (secret shop/regcred: {why}); {BESIDE}" in err
    assert {with_ for _, with_ in registry.asked[before:]} == {""}


def test_it_is_told_too_where_docker_has_the_credentials(ask: Ask, host: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": AUTH}}}))
    code, out, err = ask(deployment(host, **NAMED))
    assert (code, len(err.splitlines())) == (0, 1)
    assert f"(secret shop/regcred: it is in none of the files); {BESIDE}" in err
    assert "/usr/bin/apk" in out
    assert ask(deployment(host, **NAMED), words=())[2] == "", "without --pull no secret is asked for"


def test_a_secret_goes_to_no_other_registry(ask: Ask, host: str, registry: Registry) -> None:
    before = len(registry.asked)
    code, _, err = ask(
        deployment(host, **NAMED),
        secret("regcred", {"auths": {"registry.example.com": {"auth": AUTH}, "*": {"auth": AUTH}}}),
    )
    assert code == 2
    assert "it refuses (401)" in err
    assert "pull secrets" not in err
    assert {given for _, given in registry.asked[before:]} == {""}


def test_a_damaged_entry_is_named_by_its_secret(ask: Ask, host: str) -> None:
    code, _, err = ask(deployment(host, **NAMED), secret("regcred", {"auths": {host: {"auth": "hidden\x01"}}}))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "secret shop/regcred" in err


def test_what_is_not_formed_as_secrets_are_is_no_matter_of_others(ask: Ask, host: str) -> None:
    """Only what an image is pulled with is looked into."""
    good = secret("regcred", {"auths": {host: {"auth": AUTH}}})
    others = [{"kind": "Secret"}, {"kind": "Secret", "metadata": []}, {"kind": "ServiceAccount", "metadata": {"name": ["x"]}},
              {"kind": "Secret", "metadata": {"name": "x", "namespace": 5}, "data": 7}, {**account("puller"), "imagePullSecrets": 5}]  # fmt: skip
    assert opened(ask(deployment(host, **NAMED), good, *others))
    _, _, err = ask(deployment(host, serviceAccountName="puller"), good, *others)
    assert "(service account shop/puller: it is not formed as service accounts are)" in err


@pytest.mark.parametrize("library", [True, False])
def test_a_broken_file_tells_nothing_of_its_secrets(
    ask: Ask, host: str, monkeypatch: pytest.MonkeyPatch, library: bool
) -> None:
    """Without libyaml the errors of PyYAML quote the line."""
    if not library:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    code, _, err = ask(
        deployment(host), f"kind: Secret\nstringData:\n  password: hidden\n  .dockerconfigjson: {AUTH}: {AUTH}\n"
    )
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected YAML" in err
    assert "line 4" in err


def test_what_was_read_shows_no_secret(tmp_path: Path, host: str) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(
        yaml.safe_dump_all([deployment(host, **NAMED), secret("regcred", {"auths": {host: {"auth": AUTH}}})])
    )
    read = manifests([path])
    assert list(read.objects) == [("Secret", "shop", "regcred")]
    assert "data" not in repr(read)
