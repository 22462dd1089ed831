# SPDX-License-Identifier: Apache-2.0
"""ExecuTorch for real, in an environment that has it:

python -m venv .peers/targets && .peers/targets/bin/pip install -c constraints.txt -e '.[dev,executorch]'
.peers/targets/bin/python -m pytest -m target tests/targets/test_executorch.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.target_contract import TargetContract
from sartor.deploy.parity import compare, outputs
from sartor.targets.executorch import ExecuTorchTarget, _part
from toy_networks import SmallNet, noise

pytestmark = [
    pytest.mark.target,
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('executorch')", reason="no executorch"),
    pytest.mark.filterwarnings("ignore"),  # of the libraries that it brings
]

SCRIPT = """
import torch
from executorch.runtime import Runtime
method = Runtime.get().load_program(path).load_method('forward')
y = np.concatenate([method.execute([torch.from_numpy(sample[None])])[0].numpy().copy() for sample in x])"""


class TestExecuTorch(TargetContract):
    target, script = ExecuTorchTarget(seconds=0.01), SCRIPT


def test_a_batch_of_three_serves_any_number(tmp_path: Path) -> None:
    target, net = ExecuTorchTarget(), SmallNet()
    made = target.prepare(net, (noise(3),), [], tmp_path)
    assert compare(target.runner(made), outputs(net, noise(7)), noise(7)).max_rel_error < 1e-5


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    pool = _part("executorch.extension.pybindings.portable_lib")
    before = pool._threadpool_get_thread_count()
    with ExecuTorchTarget(threads=1)._pool():
        assert pool._threadpool_get_thread_count() == 1
    assert pool._threadpool_get_thread_count() == before
