"""A training loop over a DataLoader, as in a tutorial."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

device = "cuda" if torch.cuda.is_available() else "cpu"
net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10)).to(device)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
data = TensorDataset(torch.randn(64, 1, 16, 16), torch.randint(0, 10, (64,)))
for epoch in range(2):
    for images, labels in DataLoader(data, batch_size=8, shuffle=True, num_workers=0):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.4f}")
