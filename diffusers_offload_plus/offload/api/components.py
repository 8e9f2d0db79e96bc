"""What ``enable_group_offload`` accepts: pipelines, modular pipelines, components managers, models, modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...errors import InvalidPolicyError, NotOffloadedError

__all__ = ["components_of", "split_excluded"]


def components_of(target: Any) -> dict[str, nn.Module]:
    """The models of ``target`` by name. A component with several names is listed once, under the first of them.

    Raises:
        InvalidPolicyError: ``target`` is no pipeline, components manager or module.
        NotOffloadedError: ``target`` has no model.
    """
    if isinstance(target, nn.Module):
        return {type(target).__name__: target}
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise InvalidPolicyError(
            f"Group offloading needs a pipeline, a components manager or a torch.nn.Module, got "
            f"{type(target).__name__}."
        )
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, component in components.items():
        if isinstance(component, nn.Module):
            found.setdefault(id(component), (name, component))
    if not found:
        raise NotOffloadedError(f"{type(target).__name__} has no models yet: load its components first.")
    return dict(found.values())


def split_excluded(
    target: Any, components: dict[str, nn.Module], exclude_modules: str | Iterable[str] | None
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Split ``components`` into those to offload and those to put on the onload device whole.

    Raises:
        InvalidPolicyError: ``target`` has no component of a given name, or all that have weights are excluded.
    """
    if exclude_modules is None:
        return components, {}
    names = [exclude_modules] if isinstance(exclude_modules, str) else list(exclude_modules)
    known = getattr(target, "components", None)
    if not isinstance(known, dict):
        raise InvalidPolicyError(
            f"`exclude_modules` names components of a pipeline, and {type(target).__name__} is a single model. "
            "Leave it out."
        )
    for name in names:
        if name not in known:
            raise InvalidPolicyError(
                f"`exclude_modules` names '{name}', but {type(target).__name__} has no component of that name. "
                f"Its components are: {', '.join(sorted(known))}."
            )
    excluded_ids = {id(known[name]) for name in names}
    offloaded = {name: module for name, module in components.items() if id(module) not in excluded_ids}
    excluded = {name: module for name, module in components.items() if id(module) in excluded_ids}
    if not offloaded:
        raise InvalidPolicyError(
            f"`exclude_modules` names every component of {type(target).__name__} that has weights "
            f"({', '.join(excluded)}), so nothing is left to offload. Name fewer, or move it whole with `.to(...)`."
        )
    return offloaded, excluded
