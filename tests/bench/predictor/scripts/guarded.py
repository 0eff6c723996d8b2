"""The script stops if the loss is not finite or no longer decreases."""

import math

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Linear(50, 50).to(device)
optimizer = torch.optim.Adagrad(net.parameters())
best, waited = math.inf, 0
for _ in range(30):
    optimizer.zero_grad()
    loss = net(torch.randn(10, 50, device=device)).square().mean()
    if torch.isnan(loss):
        raise SystemExit("diverged")
    assert torch.isfinite(loss).all()
    loss.backward()
    optimizer.step()
    value = loss.item()
    if value < best:
        best, waited = value, 0
    else:
        waited += 1
    if waited > 20:
        break
