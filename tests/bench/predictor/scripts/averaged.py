"""Exponential moving averages of the weights, computed by hand and by PyTorch."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
mine = copy.deepcopy(net).eval().requires_grad_(False)
theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
optimizer = torch.optim.Adam(net.parameters())
for _ in range(10):
    x = torch.randn(16, 64, device=device)
    optimizer.zero_grad()
    nn.functional.l1_loss(net(x), x).backward()
    optimizer.step()
    with torch.no_grad():
        for average, weight in zip(mine.parameters(), net.parameters(), strict=True):
            average.lerp_(weight, 0.01)
    theirs.update_parameters(net)
