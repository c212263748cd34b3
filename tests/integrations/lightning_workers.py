"""Self-tuning in Lightning on two processes, for the tests.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.integrations.lightning_workers DIR` starts them. Each
writes what it has found to `DIR/RANK.pt`.
"""

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import ray_deltastn as rd
from ray_deltastn.integrations.lightning import SelfTuning
from tests.training.runs import examples, tensors_of
from tests.training.two_workers import Fading

OPTIONS = {"warmup_steps": 4, "train_interval": 3, "hyper_lr": 0.02, "hyper_clip": 100.0}


class Net(pl.LightningModule):
    """A network in float64 whose passes draw nothing, or one with dropout."""

    def __init__(self, noisy=False):
        super().__init__()
        torch.manual_seed(11)
        first = rd.Dropout("fading") if noisy else Fading("fading")
        self.net = nn.Sequential(first, nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("valid_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class DrawAlike(pl.Callback):
    """Makes the perturbations and the rows that train Θ those of one process: the first half of the minibatch.

    Each process draws perturbations for the whole minibatch.
    """

    def __init__(self, tuning):
        self.tuning = tuning

    def on_train_start(self, trainer, pl_module):
        generator, (rank, size) = torch.Generator().manual_seed(3), (trainer.global_rank, trainer.world_size)
        tuner = self.tuning.tuner

        def sample(rows, antithetic=False):
            z = torch.randn(rows * size, len(tuner.space), generator=generator, dtype=torch.float64)
            # The sampler gives every second row to a process, and the tuner's minibatches are cut in halves.
            return tuner.space.scale * (z[rank::size] if tuner.model.training else z[rank * rows : (rank + 1) * rows])

        tuner.objective.sample = sample
        tuner.algorithm._window = lambda x, y, kept: (x[:kept], y[:kept])


def space():
    return rd.HyperSpace(fading=rd.Bounded(0.3, low=0.0, high=0.9), decay=rd.Positive(1e-2))


def loader(count, seed, batch, **sampler):
    x, y = examples(count, seed)
    data = TensorDataset(x.double(), y)
    return DataLoader(data, batch_size=batch, sampler=DistributedSampler(data, shuffle=False, **sampler))


def fit(processes, noisy=False, folder=None, ckpt_path=None, epochs=4):
    """Tensors and schedule of a run; a checkpoint of the second epoch goes into a folder."""
    tuning = SelfTuning(space(), F.cross_entropy, penalty=rd.L2("decay"), **OPTIONS)
    callbacks = [tuning, *([] if noisy else [DrawAlike(tuning)])]
    if folder is not None:
        callbacks.append(pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(trainer.global_rank)
    sampler = {"num_replicas": processes, "rank": trainer.global_rank}
    splits = (loader(count, seed, 16 // processes, **sampler) for seed, count in ((1, 80), (2, 48)))
    trainer.fit(Net(noisy), *splits, ckpt_path=ckpt_path)
    return {
        "tensors": tensors_of(tuning.tuner),
        "schedule": tuning.tuner.schedule().to_dict("list"),
        "history": tuning.tuner.history().to_dict("list"),
        "state": tuning.state_dict(),
    }


def main(folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {"exact": fit(2), "noisy": fit(2, noisy=True, folder=folder)}
    found["resumed"] = fit(2, noisy=True, ckpt_path=str(Path(folder, "epoch=1.ckpt")))
    torch.save(found, Path(folder, f"{torch.distributed.get_rank()}.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
