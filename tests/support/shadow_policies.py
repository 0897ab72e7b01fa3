"""Policies that a shadow's process rebuilds: they must live in a module that can be imported."""

import numpy as np
import torch
from torch import nn

WIDTH = 8


class Stochastic(nn.Module):
    """Draws its action in the forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, observation):
        observation = getattr(observation, "held", observation)
        logits = self.head(torch.tanh(self.body(observation)))
        self.action = torch.distributions.Categorical(logits=logits).sample()
        return logits


class OddTensor:
    """Something a policy may be called with that is neither a tensor nor plain."""

    def __init__(self, held):
        self.held = held


class Recurrent(nn.Module):
    """Hands its hidden state on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.memory = nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.hidden = torch.zeros(2, WIDTH)

    def forward(self, observation):
        self.hidden = self.memory(torch.tanh(self.body(observation)), self.hidden)
        logits = self.head(self.hidden)
        self.action = logits.argmax(-1)
        return logits


class Normalised(nn.Module):
    """Its running statistics change while it acts, as they do in training mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.train()

    def forward(self, observation):
        logits = self.head(torch.relu(self.norm(self.body(observation))))
        self.action = logits.argmax(-1)
        return logits


class NumpyNoise(Stochastic):
    def forward(self, observation):
        return super().forward(observation) + np.random.normal()  # noqa: NPY002 - on purpose
