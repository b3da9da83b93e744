# SPDX-License-Identifier: Apache-2.0
"""Names follow the file, the first line of a uid counts, nonsense is passed over."""

from __future__ import annotations

from pathlib import Path

from sensors.containers.users import Users


def test_names_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n+::::::\nbad\n\n")
    users = Users(str(path))
    assert users.names == {"0": "root"}
    assert not users.changed()
    path.write_text("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
    assert users.changed()
    assert users.names == {"0": "root", "1000": "alice"}


def test_no_file_is_no_names(tmp_path: Path) -> None:
    users = Users(str(tmp_path / "none"))
    assert users.names == {}
    assert not users.changed()
