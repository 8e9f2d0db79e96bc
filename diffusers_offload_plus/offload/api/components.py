"""What ``enable_group_offload`` accepts: pipelines, modular pipelines, components managers, models, modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...errors import InvalidPolicyError, NotOffloadedError

__all__ = ["components_of", "split_excluded"]


def components_of(target: Any) -> dict[str, nn.Module]:
    """The models of ``target`` by name. A component that stands for several names is listed once.

    Raises:
        InvalidPolicyError: ``target`` holds no model, or is nothing that does.
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
        raise NotOffloadedError(f"{type(target).__name__} holds no models yet: load its components first.")
    return dict(found.values())


def split_excluded(
    target: Any, components: dict[str, nn.Module], exclude_modules: str | Iterable[str] | None
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Components to offload, and those to place on the onload device whole.

    Raises:
        InvalidPolicyError: a name that ``target`` has no component for, or the names of all that have weights.
    """
    if exclude_modules is None:
        return components, {}
    names = [exclude_modules] if isinstance(exclude_modules, str) else list(exclude_modules)
    known = getattr(target, "components", None)
    if not isinstance(known, dict):
        raise InvalidPolicyError(
            f"`exclude_modules` names components of a pipeline, and {type(target).__name__} is a single model. "
            f"Leave it out."
        )
    for name in names:
        if name not in known:
            raise InvalidPolicyError(
                f"`exclude_modules` names '{name}', which {type(target).__name__} has no component called. "
                f"Its components are: {', '.join(sorted(known))}."
            )
    excluded_ids = {id(known[name]) for name in names}
    kept = {name: module for name, module in components.items() if id(module) not in excluded_ids}
    excluded = {name: module for name, module in components.items() if id(module) in excluded_ids}
    if not kept:
        raise InvalidPolicyError(
            f"`exclude_modules` names every component of {type(target).__name__} that has weights "
            f"({', '.join(excluded)}), so nothing is left to offload. Name fewer, or move it whole with `.to(...)`."
        )
    return kept, excluded
