"""A leak: the outputs and losses of every step stay on the device."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Linear(100, 1000).to(device)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
outputs, losses = [], []
for _ in range(20):
    optimizer.zero_grad()
    out = net(torch.randn(64, 100, device=device))
    outputs.append(out)
    loss = out.square().mean()
    losses.append(loss)
    loss.backward()
    optimizer.step()
