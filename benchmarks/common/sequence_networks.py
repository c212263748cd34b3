"""Networks for sequences of words: a small transformer and LSTMs, with tuned regularisation, of PyTorch's layers."""

from torch import Tensor, nn

import ray_deltastn as rd
from ray_deltastn.tasks.language_networks import LSTMModel

#: Number of different words, words of a sequence, width of the networks.
WORDS, LENGTH, WIDTH = 64, 32, 128
#: The same of a language model.
LANGUAGE_WORDS, LANGUAGE_LENGTH = 512, 70


class Transformer(nn.Module):
    """Two encoder layers with a class for each word: (B, T) → (B, words, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(0.02 * nn.init.normal_(self.words.weight.new_empty(1, LENGTH, WIDTH)))
        self.before = rd.Dropout("dropout0")
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.after, self.out = rd.Dropout("dropout1"), nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the words at each place."""
        y = self.encoder(self.before(self.words(x) + self.positions))
        out: Tensor = self.out(self.after(y))
        return out.transpose(1, 2)


class Recurrent(nn.Module):
    """Two layers of an LSTM with a class for each word: (B, T) → (B, words, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.before = nn.Embedding(WORDS, WIDTH), rd.Dropout("dropout0")
        self.layers = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.after, self.out = rd.Dropout("dropout1"), nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the words at each place."""
        y, _ = self.layers(self.before(self.words(x)))
        out: Tensor = self.out(self.after(y))
        return out.transpose(1, 2)


class Language(LSTMModel):
    """The network of `ptb-lstm` with two layers of `WIDTH` units, for sequences that begin with a state of zeros."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__(LANGUAGE_WORDS, WIDTH, WIDTH, tied=tied)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Scores of the next words at each place."""
        state = tuple(
            (h.to(x.device).expand(len(x), -1), c.to(x.device).expand(len(x), -1)) for h, c in self.first_state()
        )
        return super().forward(x, state)[0]
