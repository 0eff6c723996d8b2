"""Every step writes a checkpoint, saves the best one separately, and reads both again."""

import os

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Linear(200, 100).to(device)
optimizer = torch.optim.Adam(net.parameters())
os.makedirs("checkpoints", exist_ok=True)
best = float("inf")
for step in range(10):
    loss = net(torch.randn(8, 200, device=device)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "checkpoints/last.pt")
    if loss.item() <= best:
        best = loss.item()
        torch.save(net.state_dict(), "checkpoints/best.pt")
    state = torch.load("checkpoints/last.pt", map_location=device)
    net.load_state_dict(state["net"])
    net.load_state_dict(torch.load("checkpoints/best.pt", map_location=device))
