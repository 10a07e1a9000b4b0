"""Three skills that can be marked right or wrong, and plain text: what the example's models are trained and tested on.

    sort: dbcae=abcde    put letters in order
    flip: QWERT=TREWQ    turn a word round
    plus: 37+48=85       add
    a fox bites a hat.

Every prompt is one of a million or so; a fixed share of them, told by a hash, is held out: no model has seen those in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Texts = NDArray[np.uint8]
"""ASCII texts of one length, one in a row."""
LETTERS = 5
HELD_OUT = 8
"""One prompt in so many is kept from training."""


@dataclass(frozen=True, slots=True)
class Skill:
    """A task whose prompts all have one length.

    `questions` draws what stands between the skill's name and the equals sign; `solve` gives the answers to those, padded with
    spaces where they are shorter than the longest one.
    """

    name: str
    questions: Callable[[np.random.Generator, int], Texts]
    solve: Callable[[Texts], Texts]

    def prompts(self, questions: Texts) -> Texts:
        """`name: question=` of each question."""
        rows = len(questions)
        start, end = _fixed(f"{self.name}: ", rows), _fixed("=", rows)
        return np.concatenate([start, questions, end], axis=1)


def draw(skill: Skill, generator: np.random.Generator, count: int, held_out: bool) -> Texts:
    """`count` questions that are all held out, or all not."""
    found: list[Texts] = []
    while sum(map(len, found)) < count:
        questions = skill.questions(generator, 2 * count)
        found.append(questions[_is_held_out(questions) == held_out])
    return np.concatenate(found)[:count]


def sentences(generator: np.random.Generator, count: int, held_out: bool) -> list[str]:
    """Sentences of a small grammar, in which the kind of a noun decides what it does."""
    return [text for text, _ in zip(_sentences(generator, held_out), range(count), strict=False)]


def strings(texts: Texts) -> list[str]:
    """The rows as Python texts, without padding."""
    return [bytes(row).decode().rstrip() for row in texts]


def _fixed(text: str, rows: int) -> Texts:
    return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (rows, len(text)))


def _is_held_out(questions: Texts) -> NDArray[np.bool_]:
    """By a polynomial hash of the text, so that it depends on nothing else."""
    total = np.zeros(len(questions), np.uint64)
    for column in questions.T:
        total = (total * np.uint64(1_000_003) + column.astype(np.uint64)) % np.uint64(998_244_353)
    held_out: NDArray[np.bool_] = total % np.uint64(HELD_OUT) == 0
    return held_out


def _letters(first: str) -> Callable[[np.random.Generator, int], Texts]:
    def questions(generator: np.random.Generator, count: int) -> Texts:
        order = np.argsort(generator.random((count, 26)), axis=1)
        return (order[:, :LETTERS] + ord(first)).astype(np.uint8)

    return questions


def _sums(generator: np.random.Generator, count: int) -> Texts:
    numbers = generator.integers(10, 100, (count, 2))
    plus = np.full((count, 1), ord("+"), np.uint8)
    return np.concatenate([_digits(numbers[:, 0], 2), plus, _digits(numbers[:, 1], 2)], axis=1)


def _digits(numbers: NDArray[np.int64], width: int) -> Texts:
    powers = 10 ** np.arange(width - 1, -1, -1)
    return (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)


def _add(questions: Texts) -> Texts:
    digits = questions.astype(np.int64) - ord("0")
    total = 10 * (digits[:, 0] + digits[:, 3]) + digits[:, 1] + digits[:, 4]
    answers = _digits(total, 3)
    short = total < 100
    answers[short, :2], answers[short, 2] = answers[short, 1:], ord(" ")
    return answers


SKILLS = (
    Skill("sort", _letters("a"), lambda questions: np.sort(questions, axis=1)),
    Skill("flip", _letters("A"), lambda questions: questions[:, ::-1]),
    Skill("plus", _sums, _add),
)

_WORDS = {
    "animal": (["cat", "dog", "fox", "hen", "pig", "cow", "bee", "rat", "bat", "cub"], ["eats", "bites", "hears", "sees"]),
    "person": (["man", "boy", "son", "nun", "kid", "guy"], ["buys", "sells", "wants", "draws"]),
    "thing": (["car", "box", "pen", "cup", "hat", "map", "bag", "key"], ["hits", "holds", "shows", "needs"]),
}


def _sentences(generator: np.random.Generator, held_out: bool) -> Iterator[str]:
    kinds = list(_WORDS)
    while True:
        nouns, verbs = _WORDS[kinds[generator.integers(3)]]
        others, _ = _WORDS[kinds[generator.integers(3)]]
        noun, verb, other = (words[generator.integers(len(words))] for words in (nouns, verbs, others))
        text = f"a {noun} {verb} a {other}."
        if (sum(text.encode()) % HELD_OUT == 0) == held_out:
            yield text
