"""A script as users launch it: ``torchrun launched.py FILE`` or ``accelerate launch launched.py FILE``.

Each rank appends a line of JSON to FILE, all at once.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn

import diffusers_offload_plus as dop
from tests.offload.stores.shared.programs import memory_of


def main(file: str) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)]).requires_grad_(False)
    x = torch.ones(2, 256)
    want = model(x)
    dop.enable_group_offload(model, "cpu", offload_type="leaf_level")
    dist.barrier()
    (component,) = dop.offload_report(model).components
    found = {
        "right": torch.equal(model(x), want),
        "bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "shared": component.shared_bytes,
        "memory": sorted(memory_of(model)),
    }
    with open(file, "a") as stream:
        stream.write(json.dumps(found) + "\n")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
