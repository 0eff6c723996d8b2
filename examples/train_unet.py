"""Train MONAI's 3-D U-Net on random volumes: a training script as people write it, for ``ppdm-bench predict``."""

import argparse
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch.utils.data import DataLoader, Dataset


class Volumes(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(1, *3 * [self.size]), torch.randint(0, 3, (1, *3 * [self.size]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = UNet(3, 1, 3, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), num_res_units=2).to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    scaler = torch.amp.GradScaler(device.type)
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    best, losses = float("inf"), []
    for epoch in range(options.epochs):
        for images, labels in DataLoader(Volumes(options.size), options.batch_size, shuffle=True):
            images, labels = images.to(device), labels.to(device)
            with torch.autocast(device.type, torch.float16):
                loss = loss_function(net(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        print(f"epoch {epoch}: {mean:.4f}")
        if mean < best:
            best = mean
            torch.save(net.state_dict(), options.out / "best.pt")


if __name__ == "__main__":
    main()
