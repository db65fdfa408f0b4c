"""TensorFlow's graphs that leave the process: `model.export`, `keras.export.ExportArchive`, `tf.saved_model.save`, TFLite.

TensorFlow traces a `tf.function` again when it saves it: that trace is made of TensorFlow's operations alone, for any batch
and time. A concrete function is saved as it was traced: it is refused if it calls back to this process.
"""

from functools import cache
from typing import Any, NoReturn

from multirnn import InvalidCall

__all__ = ["refuse_saving", "saving"]


def saving() -> bool:
    """Whether what TensorFlow traces now is for a SavedModel."""
    from tensorflow.python.saved_model.save_context import in_save_context  # there is no public function

    return bool(in_save_context())


def refuse_saving() -> None:
    """Makes the graph that is being traced refuse to be saved."""
    import tensorflow as tf

    tf.identity(_mark())


@cache
def _mark() -> Any:
    """A tensor for graphs to capture, which refuses what TensorFlow asks the captured tensors of a graph.

    When it is saved, the variable of which one is a cached value: `wrap_cached_variables` in
    `tensorflow/python/saved_model/function_serialization.py`. When it is frozen, for TFLite too, its value:
    `_FunctionConverterDataInEager` in `tensorflow/python/framework/convert_to_constants.py`.
    """
    import tensorflow as tf

    with tf.init_scope():
        mark: Any = tf.zeros((1024,), tf.uint8)  # smaller ones become constants, by their values
    mark._cached_variable = mark.numpy = _refuse
    return mark


def _refuse() -> NoReturn:
    raise InvalidCall(
        "this graph was traced with a fast layer, whose compiled recurrence no other process has: save the tf.function "
        "itself, which is traced again then, not its concrete function, and give an ExportArchive its input_signature; "
        "or set use_kernel = False on the fast layers before it is traced"
    )
