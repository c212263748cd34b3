"""Self-tuning inside the `Trainer` of Transformers: a tiny BERT, LoRA adapters, checkpoints and a search around it."""

import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import ray_deltastn as rd

transformers = pytest.importorskip("transformers")
from accelerate.state import GradientState  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler  # noqa: E402
from transformers import TrainingArguments  # noqa: E402

from ray_deltastn.integrations.classification import CrossEntropy  # noqa: E402
from ray_deltastn.integrations.companion import shuffled  # noqa: E402
from ray_deltastn.integrations.transformers import SelfTuningTrainer  # noqa: E402
from tests.pages import run  # noqa: E402

TUNING = {"warmup_steps": 3, "train_interval": 2, "hyper_lr": 0.05}
#: All dropout layers but that inside the attention.
HIDDEN = r"(?<!attention\.self)\.dropout$|^dropout$"
CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}


def bert(kind="BertForSequenceClassification", **changes):
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**{**CONFIG, **changes}))


def data(count, seed, each_word=False):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (count, 8), generator=generator)
    labels = ids % 3 if each_word else ids[:, 0] % 3
    return [
        {"input_ids": a, "attention_mask": torch.ones_like(a), "labels": b} for a, b in zip(ids, labels, strict=True)
    ]


def arguments(folder, **changes):
    given = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 2}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", **changes}
    return TrainingArguments(str(folder), **given)


def make(folder, model=None, groups=None, more=None, each_word=False, **changes):
    """A trainer of a tiny network: its rates of dropout, and `more` hyperparameters."""
    network = model or bert()
    found = rd.tune_dropouts(network, groups or {"hidden": HIDDEN})
    options = {key: changes.pop(key) for key in list(changes) if key not in ("label_smoothing", "weight_decay", "loss")}
    return SelfTuningTrainer(
        model=network,
        args=arguments(folder, **options),
        train_dataset=data(80, 1, each_word),
        eval_dataset=data(40, 2, each_word),
        space=rd.HyperSpace(**found, **(more or {})),
        tuning=TUNING,
        **changes,
    )


def everything(folder, **changes):
    more = {"smoothing": rd.Bounded(0.05, low=0.0, high=0.5), "decay": rd.Positive(1e-3)}
    return make(folder, more=more, label_smoothing="smoothing", weight_decay={"decay": "encoder"}, **changes)


def trained(trainer, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(**how)
    return trainer


def test_dropout_label_smoothing_and_weight_decay_move(tmp_path):
    trainer = trained(everything(tmp_path))
    tuner = trainer.tuner
    assert tuner.steps == trainer.state.global_step == 15
    assert tuner.hyperparameters().keys() == {"hidden", "smoothing", "decay"}
    started = {name: p.initial for name, p in tuner.space.hyperparameters.items()}
    seen = tuner.history()
    assert all((seen[f"hyperparameters/{name}"] - start).abs().max() > 1e-3 * start for name, start in started.items())
    assert len(tuner.schedule()) == 3
    logged = [entry["hyperparameters/hidden"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 7
    assert logged[-1] != started["hidden"]
    assert not any(module._forward_hooks for module in trainer.model.modules())
    rd.plot.schedules(tuner)


def test_no_loader_of_accelerate_stays_active_so_that_a_search_can_follow(tmp_path):
    trainer = trained(everything(tmp_path))
    assert trainer.accelerator.gradient_state.dataloader_references == [None]
    assert isinstance(pickle.loads(pickle.dumps(trainer.accelerator.gradient_state)), GradientState)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_checkpoint_continues_to_the_bit(epoch, tmp_path):
    whole = trained(everything(tmp_path / "whole", save_strategy="epoch"))
    again = everything(tmp_path / "again")
    trained(again, resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{5 * epoch}"))
    assert again.tuner.schedule().equals(whole.tuner.schedule())
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    (tmp_path / "whole" / "checkpoint-5" / "deltastn.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"must be a checkpoint of a SelfTuningTrainer, got no deltastn\.pt"):
        trained(everything(tmp_path / "other"), resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))


def test_the_weights_are_those_of_a_plain_trainer_at_constant_rates(tmp_path):
    """The tuner beside it changes nothing else: with rates of 0 that never move, w₀ is that of `Trainer`."""
    network = bert(hidden_dropout_prob=0.0)
    plain = transformers.Trainer(model=network, args=arguments(tmp_path), train_dataset=data(80, 1))
    trained(plain)
    tuned = bert(hidden_dropout_prob=0.0)
    rd.tune_dropouts(tuned, {"rate": HIDDEN})
    trainer = SelfTuningTrainer(
        model=tuned,
        args=arguments(tmp_path),
        train_dataset=data(80, 1),
        eval_dataset=data(40, 2),
        space=rd.HyperSpace(rate=rd.Bounded(0.0, low=0.0, high=0.5)),
        tuning={"warmup_steps": 1000},
    )
    trained(trainer)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, rtol=1e-6, atol=1e-8)


def test_gradients_may_be_accumulated(tmp_path):
    trainer = trained(everything(tmp_path, gradient_accumulation_steps=2))
    assert trainer.tuner.steps == trainer.state.global_step == 9
    assert len(trainer.tuner.schedule()) == 3


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 5), (2, 3)])
def test_the_warm_up_counts_steps_and_λ_moves_on_whole_minibatches(accumulated, steps, tmp_path):
    trainer = everything(tmp_path, gradient_accumulation_steps=accumulated, per_device_eval_batch_size=10)
    trainer._options |= {"warmup": 1, "warmup_steps": None, "train_interval": 1}
    tuner = trained(trainer).tuner
    assert tuner.warmup_steps == steps
    assert tuner.total_steps == 3 * steps
    assert tuner.history()["hyper_steps"].tolist() == [0, steps, 2 * steps]
    assert tuner.history()["hyperparameters/hidden"].nunique() == 3
    assert tuner.settings.batch_size == 16
    assert len(tuner.valid) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"batch_size": 4},
        {"batch_sampler": BatchSampler(SequentialSampler(range(10)), 4, False)},
        {"batch_sampler": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]},
    ],
)
def test_a_shuffled_loader_has_minibatches_of_the_same_size(given):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = shuffled(DataLoader(list(range(10)), **given))
    assert torch.equal(torch.get_rng_state(), before)
    found = list(again)
    assert [len(rows) for rows in found] == [4, 4, 2]
    assert sorted(torch.cat(found).tolist()) == list(range(10)) != torch.cat(found).tolist()


def test_a_loss_of_the_user(tmp_path):
    def loss(output, batch):
        return F.mse_loss(output["logits"], F.one_hot(batch["labels"], 3).float())

    trainer = trained(make(tmp_path, loss=loss))
    assert trainer.tuner.hyperparameters()["hidden"] != 0.1


@pytest.mark.parametrize(
    ("kind", "changes", "each_word"),
    [
        ("BertForTokenClassification", {}, True),
        ("BertForMaskedLM", {}, True),
        ("BertLMHeadModel", {"is_decoder": True}, True),
    ],
)
def test_other_heads(kind, changes, each_word, tmp_path):
    trainer = make(tmp_path, bert(kind, **changes), {"hidden": HIDDEN}, each_word=each_word, num_train_epochs=1)
    assert trained(trainer).tuner.steps == 5


@pytest.mark.slow
def test_lora_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], lora_dropout=0.1)
    network = peft.get_peft_model(bert(), lora)
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    trainer = make(tmp_path, network, {"adapters": "lora_dropout"}, save_strategy="epoch")
    trained(trainer)
    assert trainer.tuner.hyperparameters()["adapters"] != 0.1
    assert any("lora_A" in name for name in trainer.tuner.coverage.covered)
    now = dict(network.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    again = make(tmp_path, peft.get_peft_model(bert(), lora), {"adapters": "lora_dropout"})
    trained(again, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert again.tuner.schedule().equals(trainer.tuner.schedule())


def test_cross_entropy_with_label_smoothing_is_that_of_pytorch():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
    labels[0, :3] = -100
    for rate in (0.0, 0.3):
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=rate)
        output = {"logits": logits, "smoothing": torch.full((4, 1), rate)}
        torch.testing.assert_close(CrossEntropy()(output, {"labels": labels}), expected)
    shifted = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(CrossEntropy(shifted=True)({"logits": logits}, {"labels": labels}), shifted)
    rates = torch.tensor([0.0, 0.1, 0.2, 0.3])
    each = [F.cross_entropy(logits[i, 0:1], torch.tensor([1]), label_smoothing=float(rates[i])) for i in range(4)]
    one = {"logits": logits[:, 0], "smoothing": rates[:, None]}
    torch.testing.assert_close(
        CrossEntropy()(one, {"labels": torch.ones(4, dtype=torch.long)}), torch.stack(each).mean()
    )


@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"space": {}}, TypeError, "`space` must be a HyperSpace, got dict"),
        ({"tuning": {"epochs": 3}}, ValueError, "`epochs` must not be given, because the other library decides it"),
        ({"tuning": {"hyper_lrr": 3}}, ValueError, "did you mean 'hyper_lr'"),
        ({"label_smoothing": "hidden", "loss": F.cross_entropy}, ValueError, "needs the default loss, got 'hidden'"),
    ],
)
def test_bad_options_give_one_line(changes, error, line, tmp_path):
    given = {"space": rd.HyperSpace(hidden=rd.Bounded(0.1)), "args": arguments(tmp_path), **changes}
    with pytest.raises(error, match=re.escape(line)):
        SelfTuningTrainer(bert(), **given)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model": (bert, {"num_labels": 1})},
            "`loss` must be given for BertForSequenceClassification",
        ),
        ({"weight_decay": {"hidden": "nowhere"}}, "`weight_decay['hidden']` must match a layer with trainable weights"),
    ],
)
def test_what_does_not_fit_gives_one_line_at_the_start(changes, line, tmp_path):
    if "model" in changes:
        function, options = changes["model"]
        changes = {"model": function(**options)}
    with pytest.raises(ValueError, match=re.escape(line)):
        make(tmp_path, **changes).train()


@pytest.mark.slow
def test_the_page_runs_also_with_a_search(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/transformers.md")
    schedule = found["schedule"]
    assert len(schedule) == 10
    assert (schedule.iloc[-1] != schedule.iloc[0]).all()
    assert found["best"].hyperparameters.keys() == {"learning_rate"}
    assert [trial.status for trial in found["best"].run_summary.trials] == ["TERMINATED"] * 2


@pytest.mark.slow
def test_a_search_with_ray_around_it(ray_cluster, tmp_path):
    def model_init(trial=None):
        network = bert()
        rd.tune_dropouts(network, {"hidden": HIDDEN})
        return network

    def space(trial):
        from ray import tune

        return {"learning_rate": tune.grid_search([1e-3, 1e-2])}

    trainer = SelfTuningTrainer(
        model_init=model_init,
        args=arguments(tmp_path, eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2),
        train_dataset=data(80, 1),
        eval_dataset=data(40, 2),
        space=rd.HyperSpace(hidden=rd.Bounded(0.1, low=0.0, high=0.9)),
        tuning=TUNING,
    )
    best = trainer.hyperparameter_search(
        space,
        n_trials=1,
        direction="minimize",
        backend="ray",
        storage_path=str(tmp_path),
        verbose=0,
        resources_per_trial={"cpu": 1},
        progress_reporter=None,
    )
    assert best.hyperparameters["learning_rate"] in (1e-3, 1e-2)
    trials = best.run_summary.trials
    assert [trial.status for trial in trials] == ["TERMINATED"] * 2
    for trial in trials:
        (state,) = Path(trial.checkpoint.path).glob("checkpoint-*/deltastn.pt")
        assert torch.load(state, weights_only=True)["steps"] == 10


def test_the_rate_inside_fused_attention_is_tuned_too(tmp_path):
    network = bert(attention_probs_dropout_prob=0.1)
    trainer = trained(make(tmp_path, network, {"attention": r"attention\.self\.dropout$", "hidden": HIDDEN}))
    seen = trainer.tuner.history()
    assert (seen["hyperparameters/attention"] - 0.1).abs().max() > 1e-3
    assert all(p.isfinite().all() for p in trainer.model.parameters())
