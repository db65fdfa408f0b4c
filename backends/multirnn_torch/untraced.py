"""Calls of a fast layer that stay outside of the graphs of `torch.compile`, by why they do.

Imported on demand, since `torch.compiler.disable` loads the compiler, which takes a second.
"""

from typing import Any

import torch

from multirnn_torch.traced import REASONS

__all__ = ["BECAUSE"]


def _run(module: Any, *arguments: Any) -> Any:
    return module._run_any(*arguments)


BECAUSE: dict[str, Any] = {
    why: torch.compiler.disable(_run, reason=sentence)  # type: ignore[no-untyped-call]
    for why, sentence in REASONS.items()
}
"""`FastModule._run_any`. Here a graph breaks; with `fullgraph=True` the reason is in the error."""
