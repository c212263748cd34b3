"""Reports as they are in `reports.jsonl`."""


def report(trial_id, iteration, loss, rate, **more):
    values = {
        "epoch": iteration,
        "valid_loss": loss,
        "best_valid_loss": min(loss, 0.9),
        "hyperparameters/dropout": rate,
    }
    return {"trial_id": trial_id, "training_iteration": iteration, "diverged": False, "done": False, **values, **more}
