"""Staging buffers: two of them, reused, and never filled while a copy is still reading."""

from __future__ import annotations

import torch

from diffusers_offload_plus.offload.memory.staging import Staging


class Copy:
    """The event of a copy that is over once somebody has waited for it."""

    over = False

    def synchronize(self) -> None:
        self.over = True


def test_a_buffer_is_not_filled_while_it_is_copied_from() -> None:
    staging = Staging(torch.device("cpu"), pin=False)
    under_way: list[tuple[Copy, int]] = []
    for number in range(8):
        buffer = staging.acquire(1000)
        address = buffer.data_ptr()
        assert all(copy.over for copy, used in under_way if used == address), f"filling {number} overwrites a copy"
        under_way.append((Copy(), address))
        staging.release(under_way[-1][0])
    assert len({address for _, address in under_way}) == 2
    assert not under_way[-1][0].over, "the copy made last may still be under way"


def test_a_buffer_has_as_many_bytes_as_were_asked_for() -> None:
    staging = Staging(torch.device("cpu"), pin=False)
    for nbytes in (1000, 10, 2000, 3000, 1):
        assert staging.acquire(nbytes).numel() == nbytes
        staging.release(Copy())
    assert staging.nbytes <= 2 * 3000
