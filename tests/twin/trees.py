"""Random models, as data: a recipe is drawn by hypothesis and built from a seed, so it shrinks and replays."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import strategies as st
from torch import nn

from tests.twin import modules as m
from tests.twin.wrapped import wrap_linear_weight
from tests.zoo.quantized import QUANTISERS

LEAVES = (
    "dense",
    "scale",
    "lists",
    "counting",
    "normed",
    "attending",
    "reading",
    "strided",
    "tied",
    "shared",
    "wrapped",
    "int8",
)
SIMPLE = {
    "dense": m.Dense, "scale": m.Scale, "lists": m.Lists, "counting": m.Counting, "normed": m.Normed,
    "attending": m.Attending, "strided": m.Strided,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Node:
    """A piece by name, or (``kind == "group"``) a group of pieces."""

    kind: str
    children: tuple[Node, ...] = ()
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole model."""

    blocks: tuple[Node, ...]
    tail: tuple[Node, ...]
    seed: int

    @property
    def kinds(self) -> set[str]:
        """Every kind of piece in it."""

        def walk(node: Node) -> set[str]:
            return {node.kind}.union(*map(walk, node.children))

        return set().union(*map(walk, (*self.blocks, *self.tail)))


leaves = st.sampled_from(LEAVES).map(Node)
nodes = st.recursive(
    leaves,
    lambda inner: st.builds(
        Node,
        kind=st.just("group"),
        children=st.lists(inner, min_size=1, max_size=3).map(tuple),
        times=st.integers(1, 2),
    ),
    max_leaves=5,
)
recipes = st.builds(
    Recipe,
    blocks=st.lists(nodes, min_size=1, max_size=4).map(tuple),
    tail=st.lists(leaves, max_size=2).map(tuple),
    seed=st.integers(0, 9),
)


def build(recipe: Recipe) -> m.Model:
    """The model ``recipe`` describes."""
    torch.manual_seed(recipe.seed)
    builder = _Builder()
    model = m.Model([builder.make(node) for node in recipe.blocks], [builder.make(node) for node in recipe.tail])
    for module in model.modules():
        if isinstance(module, m.Dense) and getattr(module, "quantise", False):
            QUANTISERS["int8_weight_only"](module)
    return model


class _Builder:
    def __init__(self) -> None:
        self.linears: list[nn.Linear] = []
        self.made: list[nn.Module] = []
        self.count = 0

    def make(self, node: Node) -> nn.Module:
        self.count += 1
        if node.kind == "group":
            return m.Group([self.make(child) for child in node.children], self.count, node.times)
        piece = self.leaf(node.kind)
        self.made.append(piece)
        return piece

    def leaf(self, kind: str) -> nn.Module:
        if kind == "reading" and self.linears:
            return m.Reading(self.linears[-1])
        if kind == "shared" and self.made:
            return self.made[-1]
        if kind in SIMPLE:
            piece = SIMPLE[kind]()
        else:
            piece = m.Dense()
            if kind == "tied" and self.linears:
                piece.linear.weight = self.linears[0].weight
            elif kind == "wrapped":
                wrap_linear_weight(piece.linear)
            elif kind == "int8":
                piece.quantise = True
        if kind in ("dense", "scale", "tied"):
            self.linears.append(piece.linear)
        return piece
