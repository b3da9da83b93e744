# SPDX-License-Identifier: Apache-2.0
"""Which paths a rule of a plan is about."""

import pytest

from policy.match.covering import covers
from schemas.enforcement import PathRule
from schemas.operations import Class
from schemas.verdict import Action, RuleRef


@pytest.mark.parametrize(
    ("match", "value", "covered", "free"),
    [
        ("path", "/etc/shadow", ("/etc/shadow",), ("/etc/shadow2", "/etc")),
        ("path", "/srv/data", ("/srv/data", "/srv/data/"), ("/srv/data/x",)),
        ("capability", "net_raw", ("net_raw",), ("net_admin",)),
        ("directory", "/srv/", ("/srv/", "/srv/x", "/srv/x/"), ("/srv/x/y", "/srvx")),
        ("directory", "/", ("/", "/x"), ("/x/y",)),
        ("directory_recursive", "/srv/", ("/srv/", "/srv/x/y"), ("/srv", "/srvx")),
        ("execname", "nc", ("/usr/bin/nc",), ("/usr/bin/nc.traditional", "/nc/x")),
        ("pattern", "/**/*.key", ("/a/b.key",), ("/a/b.keys",)),
    ],
)
def test_what_a_rule_is_about(match: str, value: str, covered: tuple[str, ...], free: tuple[str, ...]) -> None:
    rule = PathRule(cls=Class.FILE, match=match, value=value, action=Action.BLOCK, ref=RuleRef("p"))
    assert [name for name in covered if not covers(rule, name)] == []
    assert [name for name in free if covers(rule, name)] == []
