# SPDX-License-Identifier: Apache-2.0
"""USB devices: how a behaviour carries one, and whether a rule covers it (kubearmor.md 2.11).

A DEVICE behaviour has `flags` = class << 16 | subclass << 8 | protocol and `args[0]` = depth behind hubs (0 when not known).
"""

from __future__ import annotations

from schemas.behaviour import Behaviour
from schemas.rules import Device


def pack(class_: int, sub_class: int = 0, protocol: int = 0) -> int:
    """`Behaviour.flags` of a device; each part is one byte of the USB interface descriptor."""
    return (class_ & 0xFF) << 16 | (sub_class & 0xFF) << 8 | (protocol & 0xFF)


def device_matches(device: Device | None, behaviour: Behaviour) -> bool:
    """Whether every part the rule names is the device's."""
    if device is None:
        return False
    flags = behaviour.flags
    return (
        device.class_ in (-1, flags >> 16 & 0xFF)
        and device.sub_class in (-1, flags >> 8 & 0xFF)
        and device.protocol in (-1, flags & 0xFF)
        and device.level in (-1, behaviour.args[0])
    )
