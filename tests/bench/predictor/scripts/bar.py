"""A progress bar that shows the loss, and a list of losses."""

import torch
from torch import nn
from tqdm import tqdm

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Linear(300, 300).to(device)
optimizer = torch.optim.RMSprop(net.parameters())
history = []
with tqdm(range(50), desc="train") as bar:
    for _ in bar:
        optimizer.zero_grad()
        loss = net(torch.randn(10, 300, device=device)).abs().mean()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}", mean=sum(history) / len(history))
