"""Text that becomes HTML: `tag` builds an element, and whatever is not `Markup` already is escaped."""

from html import escape
from typing import Any

__all__ = ["Markup", "join", "tag"]

EMPTY = ("br", "col", "input", "link", "meta")  # elements of HTML that have no content


class Markup(str):
    """HTML that is meant as such."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element, HTML or SVG.
        children: markup as it is; None and False are left out; anything else as escaped text.
        attributes: `class_` is `class`, and `data_row` is `data-row`. None and False are left out, True stands alone.
    """
    written = "".join(
        _attribute(key, value) for key, value in attributes.items() if value is not None and value is not False
    )
    if name in EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """The children one after another, escaped as `tag` does."""
    return Markup("".join(_text(child) for child in children if child is not None and child is not False))


def _text(child: Any) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(*child)
    return escape(str(child))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
