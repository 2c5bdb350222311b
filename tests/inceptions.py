"""Inception-v3 with random weights."""

from __future__ import annotations

import io

import torch
from torch import nn

from colddiff_core.evaluation.published_weights import LeftUnfilled


def random_inception():
    """Return the state of a random Inception-v3 whose features have a realistic scale."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            for parameter in self.fc.parameters():  # for class scores, which nothing here looks at
                nn.init.zeros_(parameter)

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng(devices=[]), LeftUnfilled():
        torch.manual_seed(0)
        return Blank("blank", ["2048"], empty).state_dict()
