"""A trainable without PyTorch, which takes a worker seconds to import: for tests of what schedulers do alone."""

from ray import tune


class Counting(tune.Trainable):
    """Reports a number per step; ends, or fails, at a step of its own."""

    def setup(self, config):
        self.config, self.count = config, 0

    def step(self):
        self.count += 1
        if self.count == self.config["fails"]:
            raise RuntimeError("a fault on demand")
        return {"loss": self.config["lr"], "done": self.count == self.config["ends"]}

    def save_checkpoint(self, checkpoint_dir):
        return {"count": self.count}

    def load_checkpoint(self, checkpoint):
        self.count = checkpoint["count"]

    def reset_config(self, new_config):
        self.setup(new_config)
        return True
