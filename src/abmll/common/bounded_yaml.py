"""YAML of bounded size and depth, with its aliases counted as often as they stand for something."""

from pathlib import Path
from typing import Any

import yaml

from abmll.common.errors import AbmllError
from abmll.common.files import read_regular

MAX_CHARACTERS = 1_000_000  # of a file, and of what it says once every alias is written out
MAX_DEPTH = 20


def read_yaml_text(path: Path, error: type[AbmllError]) -> str:
    """The text of a YAML file. Raises ``error`` where it is no regular file of UTF-8, or too long to be read."""
    data = read_regular(path, 4 * MAX_CHARACTERS, "give a YAML file", error)  # a character has at most 4 bytes
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text (byte {problem.start}); save it as UTF-8") from problem


def yaml_node(text: str, where: str, error: type[AbmllError]) -> yaml.Node | None:
    """The root of a YAML text's one document, its values not read yet; None for an empty one.

    Raises ``error`` in one line with ``where``, and the line where that is known: what is no YAML, is nested more than
    20 levels deep, or says more than a million characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise error(f"{where}: has more than {MAX_CHARACTERS:,} characters; is it the right file?")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _refuse_large(node)
        return node
    except yaml.YAMLError as problem:
        raise error(_refusal(where, problem)) from problem


def yaml_value(text: str, where: str, error: type[AbmllError]) -> Any:
    """What a YAML text says, in plain types. Raises as ``yaml_node``, and for a value that is none of its type."""
    node = yaml_node(text, where, error)
    if node is None:
        return None
    try:
        return _Loader("").construct_document(node)
    except yaml.YAMLError as problem:
        raise error(_refusal(where, problem)) from problem
    except ValueError as problem:  # such as the 31st of February
        raise error(f"{where}: not valid YAML: {problem}") from problem


class _Loader(yaml.SafeLoader):
    """The safe loader, which goes no deeper than ``MAX_DEPTH``."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def _refuse_large(root: yaml.Node) -> None:
    known: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        """The characters of a node with all that it refers to, and one for the node."""
        if depth > MAX_DEPTH:  # through an alias: of itself, for example
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=node.start_mark)
        if id(node) not in known:
            value = node.value
            parts = [part for pair in value for part in pair] if isinstance(node, yaml.MappingNode) else value
            own = len(value) if isinstance(node, yaml.ScalarNode) else sum(size(part, depth + 1) for part in parts)
            known[id(node)] = 1 + own
        if known[id(node)] > MAX_CHARACTERS:
            problem = f"says more than {MAX_CHARACTERS:,} characters with its aliases"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return known[id(node)]

    size(root, 0)


def _refusal(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)  # a control character has no line
    line = f":{mark.line + 1}" if mark else ""
    return f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
