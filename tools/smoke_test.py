"""Run in a fresh environment outside the repository: is the installed wheel whole?

Imports everything, checks one op per compiled library and a network against plain PyTorch.
"""

import sys
import sysconfig
from pathlib import Path

import torch

import cnnkernels
import cnnkernels.bench
import cnnkernels.models as models
from cnnkernels import _lib

site = Path(sysconfig.get_path("platlib")).resolve()
installed = Path(cnnkernels.__file__).resolve()
assert site in installed.parents, f"cnnkernels was imported from {installed}, not from {site}"
assert _lib.cpu_missing is None, _lib.cpu_missing
assert _lib.plan is not None, _lib.plan_missing
assert _lib.cuda_missing is None or "--cpu" in sys.argv, _lib.cuda_missing

a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
assert torch.equal(cnnkernels.add_relu(a, b), torch.relu(a + b))
(decision,) = cnnkernels.explain(cnnkernels.add_relu, a, b)
assert decision.chosen == "cpu", decision

net = models.create("lenet5_modern").eval()
x = torch.rand(4, *net.input_size)
with torch.no_grad():
    ours = net(x)
    with cnnkernels.use("reference"):
        expected = net(x)
torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
print(f"cnnkernels {cnnkernels.__version__} from {installed.parent}: 1 passed, 0 failed")
