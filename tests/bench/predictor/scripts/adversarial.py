"""Two optimizers that step alternately."""

import torch
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
generator = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64)).to(device)
discriminator = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)).to(device)
of_generator = torch.optim.Adam(generator.parameters())
of_discriminator = torch.optim.Adam(discriminator.parameters())
for _ in range(20):
    made = generator(torch.randn(32, 16, device=device))
    of_discriminator.zero_grad()
    (discriminator(made.detach()).mean() - discriminator(torch.randn(32, 64, device=device)).mean()).backward()
    of_discriminator.step()
    of_generator.zero_grad()
    (-discriminator(made).mean()).backward()
    of_generator.step()
