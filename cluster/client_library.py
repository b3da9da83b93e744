# SPDX-License-Identifier: Apache-2.0
"""kubernetes-asyncio without its 800 modules of generated objects, which nobody here uses: 37 MB, and a second of each start.

Importing any part of it imports all, by its packages' `__init__`. Here the packages are made first, without running those, and
hold what the parts in use ask of them. What imported the whole library before is left as it is. Neighbours: `credentials`, `execution`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

from schemas.errors import MissingDependency

_LIBRARY: Final = "kubernetes_asyncio"
_CLIENT: Final = f"{_LIBRARY}.client"
_MODELS: Final = f"{_CLIENT}.models"


def light() -> None:
    """Have `kubernetes_asyncio.client`, `config` and `stream` importable. Strictly before any import of the library."""
    if _LIBRARY in sys.modules:
        return
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or not found.submodule_search_locations:
        raise MissingDependency(
            "expected the package `kubernetes-asyncio`, found none; install Hauberk with its locked packages"
        )
    place = Path(found.submodule_search_locations[0])
    made = {name: _package(name, place.joinpath(*name.split(".")[1:])) for name in (_LIBRARY, _CLIENT, _MODELS)}
    try:
        sys.modules.update(made)
        made[_LIBRARY].client, made[_CLIENT].models = made[_CLIENT], made[_MODELS]  # type: ignore[attr-defined]
        for module, name in (("configuration", "Configuration"), ("api_client", "ApiClient")):
            part = importlib.import_module(f"{_CLIENT}.{module}")
            setattr(made[_CLIENT], name, getattr(part, name))
        for name in ("config", "stream"):
            setattr(made[_LIBRARY], name, importlib.import_module(f"{_LIBRARY}.{name}"))
    except (ImportError, AttributeError):
        # Another version, whose parts ask for more: then the whole of it.
        for name in [name for name in sys.modules if name == _LIBRARY or name.startswith(f"{_LIBRARY}.")]:
            del sys.modules[name]
        importlib.import_module(_LIBRARY)


def _package(name: str, place: Path) -> ModuleType:
    made = ModuleType(name)
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(place)]
    made.__spec__, made.__path__ = spec, [str(place)]
    return made
