"""Regularisers that read hyperparameters: dropout, augmentation and penalties."""

from ray_deltastn.regularizers.activations import ActivationPenalty, TemporalActivationPenalty
from ray_deltastn.regularizers.affine import RandomAffine
from ray_deltastn.regularizers.base import Augmentation, PassValues, Penalty, Regularizer
from ray_deltastn.regularizers.color import ColorJitter
from ray_deltastn.regularizers.cutout import Cutout
from ray_deltastn.regularizers.dropconnect import DropConnect
from ray_deltastn.regularizers.dropout import ChannelDropout, Dropout
from ray_deltastn.regularizers.flip import RandomHorizontalFlip
from ray_deltastn.regularizers.given import tune_dropouts
from ray_deltastn.regularizers.noise import GaussianNoise, ScalingNoise
from ray_deltastn.regularizers.penalties import L2
from ray_deltastn.regularizers.rates import RateError, ReadRates
from ray_deltastn.regularizers.sequences import EmbeddingDropout, VariationalDropout

__all__ = [
    "L2",
    "ActivationPenalty",
    "Augmentation",
    "ChannelDropout",
    "ColorJitter",
    "Cutout",
    "DropConnect",
    "Dropout",
    "EmbeddingDropout",
    "GaussianNoise",
    "PassValues",
    "Penalty",
    "RandomAffine",
    "RandomHorizontalFlip",
    "RateError",
    "ReadRates",
    "Regularizer",
    "ScalingNoise",
    "TemporalActivationPenalty",
    "VariationalDropout",
    "tune_dropouts",
]
