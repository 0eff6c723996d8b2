"""Automatic mixed precision with a gradient scaler."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv3d(8, 1, 3, padding=1))
net = net.to(device)
optimizer = torch.optim.AdamW(net.parameters())
scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
for _ in range(20):
    volume = torch.randn(1, 1, 16, 16, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        loss = nn.functional.mse_loss(net(volume), volume)
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
