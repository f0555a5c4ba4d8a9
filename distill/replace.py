"""Varies texts by exchanging words: which words may go, which of them a copy exchanges, and where everything lands.

What stands in for a word is said by `distill/candidates.py`. English only: words are [A-Za-z]+, function words stay.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

Progress = Callable[[int, int], None]  # (done, total)


class Place(NamedTuple):
    """A word in a text: characters first to last (exclusive) of texts[text]."""

    text: int
    first: int
    last: int


# (texts, places, most, progress) -> for every place at most `most` words that could stand there; none are fine, too.
Candidates = Callable[[Sequence[str], Sequence[Place], int, Progress | None], Sequence[tuple[str, ...]]]

# Words that carry grammar, negation or a question's kind: exchanging one changes the sense, not the wording.
STOP_WORDS = frozenset(
    """
    a about above after again against all almost along already also although always am among an and another any are
    as at away be because been before being below between both but by can cannot could did do does doing done down
    during each either else ever every few for from further had has have having he hence her here hers herself him
    himself his how however i if in instead into is it its itself just least less like many may me might mine more
    most much must my myself neither never no nobody none nor not nothing now of off often on once one only onto or
    other others ought our ours out over own per perhaps quite rather same shall she should since so some something
    still such than that the their theirs them themselves then there therefore these they this those though through
    thus to together too toward towards under unless until up upon us very was we well were what whatever when where
    whether which while who whom whose why will with within without would yet you your yours yourself
    """.split()
)

# What a word goes on with: letters and digits, and what is dropped when it is cut into pieces (accents that combine,
# soft hyphens, joiners).
_GOES_ON = r"[^\W_]|[\u0300-\u036f\u00ad\u200b-\u200f\u2060\ufeff]"
# Two letters or more. "don't", "o'clock" and "1990s" hold no word to exchange; "teacher's" holds the teacher.
_WORD = re.compile(rf"(?<!{_GOES_ON})(?<![^\W_]['’])[A-Za-z]{{2,}}(?!{_GOES_ON})(?!['’][tT]\b)")


@dataclass(frozen=True, slots=True)
class Job:
    """A text to vary, and what in it must stay."""

    key: str  # seeds the draws, so that they depend on nothing that stands around the text
    text: str
    spans: tuple[tuple[int, int], ...] = ()  # characters; no word that touches one of them is exchanged
    kept: frozenset[str] = frozenset()  # words in lower case that stay wherever they stand


@dataclass(frozen=True, slots=True)
class Variant:
    """A copy of a text with some words exchanged."""

    text: str
    ends: array  # where each exchanged word ended in the original, ascending
    growth: array  # by how many characters the text has grown up to and with that word

    def shift(self, position: int) -> int:
        """Where a character of the original outside the exchanged words stands now."""
        before = bisect_right(self.ends, position)
        return position + (self.growth[before - 1] if before else 0)


def words(text: str) -> set[str]:
    """The words of a text in lower case, as `Job.kept` wants them; parts of "don't" and the like are among them."""
    return {word.lower() for word in re.findall(r"[A-Za-z]+", text)}


def vary(
    jobs: Sequence[Job],
    candidates: Candidates,
    *,
    copies: int,
    probability: float,
    most: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[list[Variant]], int]:
    """`copies` variants of every job's text, and the number of words in all texts that might have been exchanged.

    A word is exchanged with the given probability for one of its candidates, all equally likely. Every draw comes from
    (seed, key, copy) alone; copy 3 is the same whether 3 or 30 are asked for.
    """
    places = [[Place(index, *span) for span in _exchangeable(job)] for index, job in enumerate(jobs)]  # [jobs]

    def drawn(index: int, copy: int) -> Iterator[tuple[Place, float]]:
        """The words to exchange, each with a number from 0 to 1 that picks the candidate.

        Only random(), whose sequence Python promises to keep; two numbers a word, needed or not. Drawn twice rather
        than kept: twenty copies of SQuAD exchange ten million words.
        """
        random = Random(f"{seed}/{copy}/{jobs[index].key}")
        for place in places[index]:
            chance, pick = random.random(), random.random()
            if chance < probability:
                yield place, pick

    number: dict[Place, int] = {}  # only words that some copy exchanges are looked up
    for index in range(len(jobs)):
        for copy in range(1, copies + 1):
            for place, _ in drawn(index, copy):
                number.setdefault(place, len(number))
    found = candidates([job.text for job in jobs], list(number), most, progress) if number else []

    def choices(index: int, copy: int) -> Iterator[tuple[Place, str]]:
        for place, pick in drawn(index, copy):
            if words := found[number[place]]:  # a word without candidates stays
                yield place, words[int(pick * len(words))]

    variants = [
        [_exchange(job.text, choices(index, copy)) for copy in range(1, copies + 1)] for index, job in enumerate(jobs)
    ]
    return variants, sum(map(len, places))


def _exchangeable(job: Job) -> Iterator[tuple[int, int]]:
    """First character, and the one after the last, of the words that may go."""
    for match in _WORD.finditer(job.text):
        word = match.group()
        lower = word.lower()
        # The case of "McDonald" could not be given to another word.
        if lower in STOP_WORDS or lower in job.kept or word not in (lower, word.capitalize(), word.upper()):
            continue
        if set(word) <= set("IVXLC"):  # Henry IV: neighbours of iv are infusions and embryos
            continue
        first, last = match.span()
        if not any(first < end and start < last for start, end in job.spans):
            yield first, last


def _exchange(text: str, choices: Iterator[tuple[Place, str]]) -> Variant:
    """The text with each place, from left to right, filled by its word."""
    pieces, ends, growth, done, grown = [], array("i"), array("i"), 0, 0
    for place, word in choices:
        old = text[place.first : place.last]
        new = in_case_of(old, word)
        pieces += (text[done : place.first], new)
        done, grown = place.last, grown + len(new) - len(old)
        ends.append(done)
        growth.append(grown)
    pieces.append(text[done:])
    return Variant("".join(pieces), ends, growth)


def in_case_of(old: str, new: str) -> str:
    """The new word as the old one was written: UPPER, Title, or as it is."""
    if old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[0].isupper() else new
