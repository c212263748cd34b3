"""The ready tasks: where the function of each is, and what it tunes. Nothing is imported until a task is used."""

from __future__ import annotations

from dataclasses import dataclass

_DISTORTIONS = ("hue", "saturation", "brightness", "contrast", "translation", "scaling", "rotation", "shear")
_CUTOUT = ("cutout_holes", "cutout_length")


@dataclass(frozen=True)
class ReadyTask:
    """A ready task.

    Attributes:
        function: import string of the function that builds it.
        about: network and data, in a few words.
        hyperparameters: names of the hyperparameters with the default options, in order.
    """

    function: str
    about: str
    hyperparameters: tuple[str, ...]


def _dropouts(count: int) -> tuple[str, ...]:
    return tuple(f"dropout{number}" for number in range(count))


#: Name → ready task.
READY = {
    "digits-mlp": ReadyTask(
        "ray_deltastn.tasks.digits:digits_mlp",
        "perceptron on 1,797 images of scikit-learn",
        ("input_dropout", "hidden1_dropout", "hidden2_dropout", "weight_decay"),
    ),
    "mnist1d-mlp": ReadyTask(
        "ray_deltastn.tasks.mnist1d:mnist1d_mlp",
        "perceptron on generated signals; needs `mnist1d`",
        ("input_dropout", "hidden1_dropout", "hidden2_dropout", "weight_decay"),
    ),
    "mnist-mlp": ReadyTask("ray_deltastn.tasks.images:mnist_mlp", "perceptron on MNIST", _dropouts(3)),
    "fashion-cnn": ReadyTask(
        "ray_deltastn.tasks.images:fashion_cnn", "small CNN on FashionMNIST", (*_dropouts(4), *_CUTOUT)
    ),
    "cifar10-alexnet": ReadyTask(
        "ray_deltastn.tasks.images:cifar10_alexnet", "AlexNet on CIFAR-10", (*_dropouts(8), *_DISTORTIONS, *_CUTOUT)
    ),
    "cifar10-vgg16": ReadyTask(
        "ray_deltastn.tasks.images:cifar10_vgg16", "VGG16 on CIFAR-10", (*_dropouts(16), *_DISTORTIONS, *_CUTOUT)
    ),
    "cifar10-resnet18": ReadyTask(
        "ray_deltastn.tasks.images:cifar10_resnet18", "ResNet-18 on CIFAR-10", (*_dropouts(9), *_DISTORTIONS, *_CUTOUT)
    ),
    "ptb-lstm": ReadyTask(
        "ray_deltastn.tasks.language:ptb_lstm",
        "LSTM on words of the Penn Treebank or another text",
        (
            "embedding_dropout",
            "input_dropout",
            "hidden_dropout",
            "output_dropout",
            "dropconnect",
            "activation",
            "temporal_activation",
        ),
    ),
    "char-transformer": ReadyTask(
        "ray_deltastn.tasks.language:char_transformer",
        "transformer on characters of a text",
        (
            "embedding_dropout",
            "attention_dropout",
            "residual_dropout",
            "mlp_dropout",
            "embedding_decay",
            "attention_decay",
            "mlp_decay",
        ),
    ),
}
