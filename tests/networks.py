"""Small networks whose layers are used in other ways than the package's own use theirs."""

import torch
from torch import nn


class Tokens(nn.Module):
    """A transformer of one block: its first linear layers run on tokens, or not as modules."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(1, 8, 4, 4)
            self.each = nn.Linear(8, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.fc = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.each(self.patches(images).flatten(2).transpose(1, 2))
        return self.fc(self.block(tokens).mean(dim=1))
