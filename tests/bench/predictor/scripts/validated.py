"""Validation after every step; its batch is larger than that of training and causes the peak."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 1)).to(device)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)


def validate() -> float:
    net.eval()
    with torch.no_grad():
        score = net(torch.randn(64, 1, 32, 32, device=device)).mean().item()
    net.train()
    return score


for step in range(10):
    optimizer.zero_grad()
    net(torch.randn(2, 1, 32, 32, device=device)).square().mean().backward()
    optimizer.step()
    print(step, validate())
