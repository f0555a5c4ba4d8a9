"""The invented world: who and what it is populated with, and how its numbers, dates and names are written.

Everything here draws from the `random.Random` that it is given and from nothing else, so a seed is a world.
Names come in two halves that never meet: `held_out=False` for training, `held_out=True` for the dev splits.
"""

import random
import zlib

ONSETS = "b br c cl cr d dr f fl g gl gr h j k kl l m n p pr qu r s sk sl st t th tr v w z sh ch".split()
VOWELS = "a a a e e e i i o o u ae ei oa ia ou ai y".split()
CODAS = "l n r s m nd rn ll th sk lm rt nt st ck v x d g ss".split() + [""] * 8
TOWN_ENDINGS = "ton ford by mouth field wick ham stead burgh holm dale port minster haven gate ville ia a".split()
FEMALE = """
    Anna Maria Clara Ruth Edith Helen Ada Irene Lucy Martha Nora Alice Agnes Vera Rosa Ida Emma Laura Judith Esther
    Miriam Sofia Elena Greta Ingrid Astrid Leila Amina Yasmin Mei Hana Keiko Priya Anjali Zainab Farida Ngozi
    Wanjiru Teresa Lucia Paula Beatrice Julia Frances Harriet Winifred Olga Tamara Katya Marta""".split()
MALE = """
    John Thomas Henry Albert Arthur Edward Samuel Daniel Peter Paul Simon Martin Walter Hugo Oscar Felix Anton Karl
    Otto Emil Ivan Boris Pavel Stefan Marco Luca Diego Carlos Omar Karim Yusuf Hassan Rashid Kenji Hiro Wei Jun Ravi
    Arjun Kofi Kwame Tunde Joseph Benjamin Frederick Robert William George Philip Nathan""".split()
SURNAMES = """
    Harrow Marsh Fletcher Thorne Ashby Calder Whitlock Pembroke Lindqvist Okafor Moreau Castellan Brandt Novak
    Petrov Haddad Tanaka Iyer Mensah Duarte Silva Romano Keller Vogel Jansen Larsen Holm Berg Sutter Weaver Mason
    Cooper Turner Baker Carter Fisher Shepherd Archer Hale Winter Frost Rivers Stone Field Lane Brook Hill Wells
    Marlow Crane Swift Finch Drake Heron Wolfe Fox Lamb Bullock Reed Ferris Gould Hooper Ingram Jarvis Kemp Lowell
    Merton Norris Oakley Pryce""".split()
MONTHS = "January February March April May June July August September October November December".split()
SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()


def is_held_out(key: str) -> bool:
    """A quarter of all possible names belong to dev. crc32, because `hash` differs from run to run."""
    return zlib.crc32(key.lower().encode()) % 4 == 0


class Namer:
    """Makes names of one half of the world; never the same stem in both halves."""

    def __init__(self, rng: random.Random, held_out: bool):
        self.rng, self.held_out = rng, held_out
        self.drawn = 0  # how many stems and surnames it has given out

    def _mine(self, make) -> str:
        self.drawn += 1
        while is_held_out(text := make()) != self.held_out:
            pass
        return text

    def _stem(self) -> str:
        rng = self.rng
        size = rng.choice((1, 2, 2, 2, 3))
        text = ""
        for at in range(size):  # clusters only at the ends, so that the names can be spoken
            onset = rng.choice(ONSETS) if at == 0 else rng.choice("b d f g k l m n p r s t v z nd rr ll st".split())
            text += (
                onset
                + rng.choice(VOWELS)
                + (rng.choice(CODAS) if at == size - 1 else rng.choice(("", "", "l", "n", "r")))
            )
        return text.replace("yy", "y").replace("lll", "ll").replace("sss", "ss").capitalize()

    def stem(self) -> str:
        def make() -> str:
            while not 4 <= len(text := self._stem()) <= 9:
                pass
            return text

        return self._mine(make)

    def surname(self) -> str:
        if self.rng.random() < 0.45:
            return self._mine(lambda: self.rng.choice(SURNAMES))
        return self.stem()

    def town(self) -> str:
        text = self.stem()
        if self.rng.random() < 0.55 and len(text) <= 6:
            ending = self.rng.choice(TOWN_ENDINGS)
            text = (text.rstrip("aeiouy") or text) + ending if ending[0] in "aeiou" else text + ending
            if is_held_out(text) != self.held_out:
                return self.town()
        roll = self.rng.random()
        if roll < 0.08:
            return self.rng.choice(("Port ", "New ", "Saint ", "Upper ", "Lake ", "Fort ")) + text
        return text


def number(value: int, words: bool = True) -> str:
    """12 -> "twelve", 13 -> "13", 12500 -> "12,500": as newspapers do it."""
    if words and 0 <= value <= 12:
        return SMALL[value]
    return f"{value:,}" if value >= 1000 else str(value)


def round_off(value: int, rng: random.Random) -> int:
    """Mostly round numbers, because sources mostly give them."""
    if value >= 100 and rng.random() < 0.7:
        digits = 10 ** (len(str(value)) - 2)
        return value // digits * digits
    return value


def date(year: int, rng: random.Random) -> str:
    month, day = rng.choice(MONTHS), rng.randint(1, 28)
    return rng.choice((f"{day} {month} {year}", f"{month} {day}, {year}", f"{month} {year}", f"{month} {year}"))


def an(before: str, word: str) -> str:
    """Turn a closing "a " into "an " when the next word needs it."""
    if not (before.endswith((" a ", " A ")) or before in ("a ", "A ")):
        return before
    w = word.lower()
    vowel = w[:1] in tuple("aeiou") and not w.startswith(("uni", "use", "usu", "eu", "one", "once", "ut"))
    return (
        before[:-1] + "n " if vowel or w.startswith(("hour", "honest", "honour", "heir", "8", "11 ", "18 ")) else before
    )
