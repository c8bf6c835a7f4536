#!/usr/bin/env python3
"""torchao's PruneOptimizer (P19) around SGD, step by step: what tests/pat.rs compares with. Needs torch and torchao 0.18.

  torchao_pat.py FILE.safetensors      two weights, their gradients at each step, and for each case what is seen of them after it
"""
import sys
import warnings

warnings.filterwarnings("ignore")
import torch
from safetensors.torch import save_file
from torchao.prototype.pat.optim import PruneOptimizer

STEPS, LR, WARMUP, HEALING = 8, 0.125, 2, 6
CASES = {
    "lasso": dict(prox_type="ProxLasso", group_type="ElemGrouper", reg_lambda=0.5),
    "group-lasso.dim0": dict(prox_type="ProxGroupLasso", group_type="Dim0Grouper", reg_lambda=1.0),
    "group-lasso.dim1": dict(prox_type="ProxGroupLasso", group_type="Dim1Grouper", reg_lambda=1.0),
    "nuclear-norm": dict(prox_type="ProxNuclearNorm", group_type="SVDGrouper", reg_lambda=2.0),
    "min-sparsity": dict(prox_type="MinSparsityConstraint", group_type="Dim1Grouper", min_sparsity=0.5,
                         min_sparsity_schedule=True),
    "min-rank": dict(prox_type="MinRankConstraint", group_type="SVDGrouper", min_sparsity=0.5,
                     min_sparsity_schedule=True),
    "nm-sparse": dict(prox_type="NMSparseConstraint", group_type="KElementGrouper", k=4, n_nonzero=2, prox_freq=2),
    "global-min-sparsity": dict(prox_type="GlobalMinSparsityConstraint", group_type="Dim0Grouper", min_sparsity=0.5,
                                min_sparsity_schedule=True, score_type="rms"),
}


def main():
    torch.manual_seed(11)
    start = [torch.randn(8, 12), torch.randn(6, 8)]
    gradients = torch.randn(STEPS, 8, 12), torch.randn(STEPS, 6, 8)
    kept = {"start.0": start[0], "start.1": start[1], "gradients.0": gradients[0], "gradients.1": gradients[1]}
    for name, case in CASES.items():
        weights = [torch.nn.Parameter(w.clone()) for w in start]
        base = torch.optim.SGD([dict(params=weights, **case)], lr=LR)
        optimizer = PruneOptimizer(base, warmup_steps=WARMUP, healing_start_step=HEALING)
        seen = [[], []]
        for step in range(STEPS):
            for weight, gradient in zip(weights, gradients):
                weight.grad = gradient[step].clone()
            optimizer.step()
            for i, weight in enumerate(weights):
                seen[i].append(weight.detach().clone())
        for i in range(2):
            kept[f"{name}.{i}"] = torch.stack(seen[i])
    save_file(kept, sys.argv[1])


main()
