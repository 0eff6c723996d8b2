"""A ``main()`` with argparse and an entry guard, a folder for results, and a log file."""

import argparse
import json
import logging
import os
from pathlib import Path

import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/one"))
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    (options.out / "options.json").write_text(json.dumps({"width": options.width}))
    logging.basicConfig(filename=options.out / "log.txt", level=logging.INFO)
    width = json.loads((options.out / "options.json").read_text())["width"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = nn.Sequential(nn.Linear(100, width), nn.Tanh(), nn.Linear(width, 100)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for step in range(100):
        x = torch.randn(32, 100, device=device)
        loss = (net(x) - x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        logging.info("step %d loss %f", step, float(loss))


if __name__ == "__main__":
    main()
