"""The Ray cluster that a run starts itself: nobody else reaches it."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

OWN: Final[Mapping[str, Any]] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
"""Arguments of `ray.init` for it."""


def is_connected() -> bool:
    """Return whether this process is connected to a cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def stay_on_loopback() -> None:
    """Have the cluster that is started next listen on loopback, and ask for a random token.

    Anyone who reaches a cluster can run code on it. Ray reads these variables when it is imported;
    its workers inherit them.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or it takes another address
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if sys.modules.get("ray") is not None:
        constants: Any = import_module("ray._private.ray_constants")
        library: Any = import_module("ray._raylet")
        constants.ENABLE_RAY_CLUSTER = False
        library.Config.initialize("")
        library.AuthenticationTokenLoader.instance().reset_cache()
