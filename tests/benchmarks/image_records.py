"""Records of image runs, made up."""


def finished(label, seed, valid, test):
    """Record of a run that has ended, with these losses after each epoch."""
    curve = [
        {
            "epoch": i + 1,
            "steps": i,
            "valid_loss": v,
            "test_loss": t,
            "test_accuracy": 1 - (t or 9) / 10,
            "valid_accuracy": 1 - (v or 9) / 20,
            "hyperparameters/p": 0.1 * (i + 1),
            "seconds/train": 2.0 * i,
            "seconds/hyper": 0.5 * i,
        }
        for i, (v, t) in enumerate(zip(valid, test, strict=True))
    ]
    return {
        "label": label,
        "config": {"seed": seed, "epochs": len(valid)},
        "hardware": "cpu",
        "threads": 1,
        "processor": "",
        "python": "",
        "torch": "",
        "ray_deltastn": "",
        "done": True,
        "curve": curve,
    }
