"""No syntax at all: the text is what it says."""

from __future__ import annotations

from attrs import frozen

from sdkit import ParameterError
from sdkit_prompts.tree import Prompt, Text, Tree

__all__ = ["Plain"]


@frozen
class Plain:
    """Text as it stands, with weight 1."""

    def parse(self, text: str) -> Tree:
        """The text as one node."""
        return Prompt((Text(text),))

    def print(self, tree: Tree) -> str:
        """The text of a tree that is nothing but text.

        Raises:
            ParameterError: it is more.
        """
        if not isinstance(tree, Prompt) or not all(isinstance(n, Text) and n.weight == 1 for n in tree.nodes):
            raise ParameterError("Plain text says neither weights nor anything else; take the dialect a1111 or compel.")
        return "".join(node.text for node in tree.nodes if isinstance(node, Text))
