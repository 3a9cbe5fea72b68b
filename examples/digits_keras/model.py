"""A small Keras 3 network on whichever backend KERAS_BACKEND names; torch where it names none."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras


def make_model():
    """Return the compiled network, the same one each time."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10, activation="softmax")]
    )
    model.compile(optimizer=keras.optimizers.SGD(0.2), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
