"""Processes that fork after a product, and that end during one."""

from __future__ import annotations

import subprocess
import sys

import pytest

PREPARED = """
import os, sys, threading
import torch
from unspool.model.linear import QuantizedLinear
from unspool.spec.catalog import parse

layer = QuantizedLinear(parse("t2-e2m1"), 1024, 1024)
for name, tensor in layer.named_buffers():
    tensor.fill_(0x3F800000 if name == "weight_tensor_scale" else 1)
x = torch.ones(16, 1024)
torch.set_num_threads(2)
y = layer(x)
"""

FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(layer(x), y) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# Without torch in the thread: its operators cannot be left by a thread that the interpreter ends.
EXIT = """
kernel, rows = layer.prepared().kernel, x.numpy()

def multiply():
    while True:
        kernel(rows)

for _ in range(2):
    threading.Thread(target=multiply, daemon=True).start()
threading.Event().wait(0.2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("then", [FORK, EXIT], ids=["fork", "exit"])
def test_a_process_ends_as_it_should(then):
    child = [sys.executable, "-W", "ignore", "-c", PREPARED + then]
    done = subprocess.run(child, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
