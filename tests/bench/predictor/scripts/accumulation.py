"""Gradient accumulation: one optimizer step for four batches."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).to(device)
optimizer = torch.optim.AdamW(net.parameters())
for batch in range(100):
    tokens = torch.randn(4, 50, 32, device=device)
    (net(tokens).square().mean() / 4).backward()
    if (batch + 1) % 4 == 0:
        optimizer.step()
        optimizer.zero_grad()
