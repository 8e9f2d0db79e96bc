"""A group's weights: which move together, where they are, and what was written to them."""

from __future__ import annotations

from tests.mutants.edits import Always, AtEnd, Before, Drop, Never, Replace
from tests.mutants.mutant import Mutant, Room

__all__ = ["WEIGHTS"]

WEIGHTS = Room(
    first=(
        "test_figures",
        "test_budgets",
        "test_arguments",
        "test_broken_engines",
        "test_buffers",
        "test_ties_and_views",
        "test_user_changes",
        "test_failures",
        "test_tensor_subclasses",
        "test_training",
        "test_claims_and_copies",
        "test_copies_and_state",
        "test_pointers",
    ),
    mutants=[
        Mutant("onload does nothing", "ParamGroup.onload", AtEnd("self.offload()")),
        Mutant("the parameter is not re-pointed", "ParamGroup.onload", Drop("device.point()")),
        Mutant(
            "views are one alignment off", "lay_out", Replace("-(-_ // ALIGNMENT)", "max(0, -(-_ // ALIGNMENT) - 1)")
        ),
        Mutant(
            "the last tensor of a slab is not copied",
            "host:pack",
            Replace("_1.copy_(_2)", "_1.copy_(_2) if source is not sources[-1] else None"),
        ),
        Mutant(
            "a shared tensor moves with its first unit only",
            "take_inventory",
            Replace("_.setdefault(_1, set()).add(_2)", "users.setdefault(_1, {_2})"),
        ),
        Mutant("ties are not seen", "_clusters", Replace("_[1:]", "_[:0]")),
        Mutant("offload does not restore", "ParamGroup.offload", Drop("self._stored.point()")),
        Mutant("offload after a look does not restore", "Writes.store", Drop("repoint(...)")),
        Mutant("an in-place write on the device is dropped", "Writes._store", Never("_.is_buffer or ...")),
        Mutant("bytes are not compared", "Writes._store", Never("compare is Compare.ALL")),
        Mutant(
            "bytes of trained weights are not compared",
            "Writes._store",
            Never("compare is Compare.TRAINED and ..."),
        ),
        Mutant(
            "writes that leave no trace are not looked for",
            "ParamGroup.offload",
            Replace("self._shows_writes", "True"),
        ),
        Mutant("re-pointed on the device: dropped", "Writes._store", Never("self._adopt(...)")),
        Mutant(
            "re-pointed on the host: not noticed",
            "ParamGroup.onload",
            Never("self.state is GroupState.OFFLOADED and ..."),
        ),
        Mutant("written under a prefetch: not noticed", "ParamGroup.onload", Never("not self.in_place and ...")),
        Mutant(
            "re-pointed under a prefetch: not noticed", "ParamGroup.onload", Never("not self._stored.are_current()")
        ),
        Mutant(
            "what is cached was re-pointed: not noticed", "ParamGroup.onload", Never("not self._device.are_current()")
        ),
        Mutant("a tensor at another address is not noticed", "Pointers.are_current", Never("_ != self._addresses")),
        Mutant(
            "other strides are not noticed",
            "Pointers.are_current",
            Replace("_ != self._layout", "[*map(_shape, parts), *map(_dtype, parts)] != self._layout[len(parts) :]"),
        ),
        Mutant(
            "another shape is not noticed",
            "Pointers.are_current",
            Replace(
                "_ != self._layout",
                "[*map(_stride, parts)] != self._layout[: len(parts)]"
                " or [*map(_dtype, parts)] != self._layout[2 * len(parts) :]",
            ),
        ),
        Mutant(
            "another dtype is not noticed",
            "Pointers.are_current",
            Replace(
                "_ != self._layout", "[*map(_stride, parts), *map(_shape, parts)] != self._layout[: 2 * len(parts)]"
            ),
        ),
        Mutant("another inner tensor is not noticed", "Pointers._has_inner", Never("getattr(...) is not _")),
        Mutant("an added inner tensor is not noticed", "Pointers._has_inner", Never("_ != attributes")),
        Mutant(
            "what was empty and is not any more is not noticed",
            "Pointers._has_inner",
            Replace("not any(...)", "True"),
        ),
        Mutant("tensors without counters pass for unwritten", "Pointers.changed_since", Replace("_ < 0", "False")),
        Mutant(
            "writes to inner tensors are not seen",
            "Pointers.changed_since",
            Replace("now[start : start + count] != versions[start : start + count]", "now[start] != versions[start]"),
        ),
        Mutant("only the outer tensors are pointed at the device", "Pointers._assign", Drop("setattr(...)")),
        Mutant("only root parameters of wrappers are re-pointed", "repoint", Drop("setattr(...)")),
        Mutant(
            "pinned memory stays after disable", "ParamGroup.to_plain_memory", Replace('_ != "host"', '_ == "disk"')
        ),
        Mutant("saved weights stay on the device", "SavedWeights._pack", Always("_ is None")),
        Mutant("gradients stay on the device", "SavedWeights.land", Before("_ = _.to(...)", "return")),
    ],
)
