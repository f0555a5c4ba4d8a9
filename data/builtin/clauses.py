"""Verb frames: one line of a pattern file becomes many sentences and a question for every role of the clause.

    f past {E} :: wrote/write/written ~ composed/compose/composed :: obj=a poem; place=in [<Town>]; why=[to please a king]

The first verb is for the sentence, the others are what a question may say instead. What stands in [ ] is the
answer of that role; without brackets the whole text is. A past clause gets a time of its own.
"""

import re
from dataclasses import dataclass

from data.builtin import world
from data.builtin.grammar import Pattern
from data.builtin.passage import PRONOUNS, Entity, Passage, Piece

# Forms of a sentence: S subject, V verb, D participle with was/were, [role], [rest] = what other roles there are.
FORMS = [
    "S V [obj] [rest].",
    "S V [obj] [rest].",
    "S V [obj] [rest].",
    "[time], S V [obj] [rest].",
    "[place], S V [obj] [rest].",
    "[obj] D by O [rest].",
    "[why], S V [obj] [rest].",
    "[with], S V [obj] [rest].",
    "[how], S V [obj] [rest].",
    "S also V [obj] [rest].",
    "S V [obj] [time], apparently [why].",
    "According to (a local history|most accounts|one account), S V [obj] [rest].",
]
DEV_FORMS = [
    "It was [time] that S V [obj] [rest].",
    "[obj], we are told, D by O [rest].",
    "Few people know that [time] S V [obj] [rest].",
    "It is recorded that S V [obj] [rest].",
    "What is certain is that S V [obj] [rest].",
    "It was [place] that S V [obj] [rest].",
    "T, it seems, V [obj] [rest].",
]
PAIRS = [
    "S V1 [obj1] [rest1] and later V2 [obj2] [rest2].",
    "After S V1 [obj1] [rest1], N V2 [obj2] [rest2].",
    "S V1 [obj1] [rest1]; [time2] N V2 [obj2].",
    "Having P1 [obj1] [rest1], S V2 [obj2] [rest2].",
    "T, who had P1 [obj1] [rest1], V2 [obj2] [rest2].",
]
DEV_PAIRS = [
    "Not only did S B1 [obj1], but [time2] N also V2 [obj2].",
    "Before N V2 [obj2] [rest2], S had P1 [obj1] [rest1].",
]

# Questions by role. S full name, B base form, V verb, D "was written", DO did/do/does, X the object made definite.
ASK = {
    "obj": [
        "What DO S B[?time]?",
        "What DO S B[?place]?",
        "What D by O[?time]?",
        "S V what[?time]?",
        "What is it that S V[?place]?",
        "According to the text, what DO S B[?time]?",
    ],
    "subj": [
        "WHO V X?",
        "By whom D X?",
        "WHO V X[?time]?",
        "X D by whom?",
        "WHO was it that V X?",
        "What is the name of the NOUN that V X?",
    ],
    "time": [
        "When DO S B X?",
        "In what year DO S B X?",
        "When D X by O?",
        "What year DO S B X?",
        "At what time in history DO S B X?",
    ],
    "place": [
        "Where DO S B X?",
        "In which place DO S B X?",
        "Where D X by O?",
        "S V X where?",
        "At what location DO S B X?",
    ],
    "why": [
        "Why DO S B X?",
        "For what reason DO S B X?",
        "What was the reason that S V X?",
        "What led S to B X?",
        "Why D X by O?",
    ],
    "how": ["How DO S B X?", "In what way DO S B X?", "By what means DO S B X?", "How D X by O?"],
    "using": [
        "What DO S use to B X?",
        "With what DO S B X?",
        "What is used by O to B X?",
        "What tool or material DO S B X with?",
    ],
    "with": [
        "With whom DO S B X?",
        "Who helped S to B X?",
        "Who worked with O to B X?",
        "Whose help DO S have to B X?",
    ],
    "to": ["To whom DO S B X?", "Who DO S B X to?", "X D by O to whom?", "Who was it that S V X to?"],
    "lang": [
        "Into what language DO S B X?",
        "Into which language D X by O?",
        "X D into what language by O?",
        "What was the language into which S V X?",
    ],
    "outof": ["What DO S B X from?", "From what DO S B X?", "What material DO S B X from?", "Out of what DO S B X?"],
}
DEV_ASK = {
    "obj": ["Name the thing that S V.", "Which thing D by O?", "What, according to the passage, DO S B?"],
    "subj": [
        "X D by which NOUN?",
        "Whose doing was it that X D?",
        "WHO is said to have P X?",
        "Who is known for having P X?",
    ],
    "time": ["During which year DO S B X?", "S V X in what year?", "In which year was it that S V X?"],
    "place": ["What place is where S V X?", "Whereabouts DO S B X?", "In what location D X by O?"],
    "why": ["What caused S to B X?", "What explains why S V X?", "What made S B X?"],
    "how": ["What method DO S use to B X?", "How was it that S V X?"],
    "using": ["What is needed by O to B X?", "S V X with what?"],
    "with": ["Who assisted S when X D?", "In whose company DO S B X?"],
    "to": ["Who was the one to whom S V X?", "S V X to whom?"],
    "lang": ["Which language DO S B X into?", "S V X into which language?"],
    "outof": ["S V X out of what?", "What served as the raw material from which S V X?"],
}


@dataclass(eq=False)
class Clause:
    """One statement: `roles` maps a role to (text before, answer, text after)."""

    entity: Entity
    key: str
    tense: str
    subject: str
    verbs: list[list[str]]
    roles: dict[str, tuple[str, str, str]]

    @property
    def plural(self) -> bool:
        return not self.subject.startswith("{E}")

    def verb(self, which: int = 0) -> str:
        words = self.verbs[which]
        return words[1] if self.plural and self.tense == "pres" else words[0]

    def passive(self, which: int, many: bool) -> str:
        be = ("were" if many else "was") if self.tense == "past" else ("are" if many else "is")
        return f"{be} {self.verbs[which][2]}"

    def many(self) -> bool:
        text = self.roles["obj"][1]
        return (
            bool(
                re.match(
                    r"(two|three|four|five|six|seven|nine|ten|forty|several|many|some|most|both|dozens|hundreds|half|a third|a quarter)\b",
                    text,
                )
            )
            or (" and " in text)
            or (
                not re.match(r"(an?|the|one|its|his|her|\{P\})\b", text)
                and text.split(" of ")[0].split(" for ")[0].split(" from ")[0].endswith("s")
            )
        )


def make(passage: Passage, pattern: Pattern, entity: Entity) -> Clause:
    draw, rng = passage.world, passage.rng
    head, verbs, rest = (part.strip() for part in pattern.text.split("::"))
    tense, subject = head.split(" ", 1)
    roles = {}
    for part in rest.split(";"):
        role, _, text = part.strip().partition("=")
        text = draw.expand(text)
        before, open_, inner = text.partition("[")
        answer, _, after = inner.partition("]")
        roles[role] = (before, answer, after) if open_ else ("", text, "")
        draw.fresh(lambda answer=roles[role][1]: answer)
    if tense == "past" and "time" not in roles:
        year = draw.start_year(entity) + rng.randint(0, 30)
        text = draw.fresh(
            lambda: rng.choice(
                (
                    str(year),
                    str(year),
                    str(year),
                    world.date(year, rng),
                    f"the {rng.choice(('spring', 'summer', 'autumn', 'winter'))} of {year}",
                )
            )
        )
        roles["time"] = ("on " if re.search(r"^\d+ [A-Z]| \d+,", text) else "in ", text, "")
    return Clause(
        entity, pattern.key, tense, draw.expand(subject), [v.strip().split("/") for v in re.split("[~,]", verbs)], roles
    )


def sentence(passage: Passage, clauses: list[Clause], form: str) -> list[Piece] | None:
    """The pieces of one sentence, or None where the form asks for a role that the clause hasn't."""
    rng, first = passage.rng, clauses[0]
    needed = [(name, int(digit or 1) - 1) for name, digit in re.findall(r"\[([a-z]+)(\d?)\]", form)]
    if any(name != "rest" and name not in clauses[which].roles for name, which in needed):
        return None
    if form.startswith("[obj] D") and (first.plural and first.tense == "past"):
        return None
    out: list[Piece] = []
    for token in re.findall(r"\[[a-z]+\d?\]|[A-Za-z]+\d?|[^A-Za-z\[\]]+", passage.world.expand(form)):
        if match := re.fullmatch(r"\[([a-z]+)(\d?)\]", token):
            which = int(match[2] or 1) - 1
            clause, named = clauses[which], {name for name, w in needed if w == which}
            names = [match[1]]
            if names == ["rest"]:
                names = [r for r in clause.roles if r not in named]
                names = [r for r in names if r != "why"][:2] + [r for r in names if r == "why"]
                names = [r for r in names if rng.random() < (0.8 if len(clauses) == 1 else 0.4)]
            for at, role in enumerate(names):
                before, answer, after = clause.roles[role]
                answer = answer.replace("{P}", PRONOUNS[clause.entity.pron][2])
                out += [Piece((" " if at else "") + before), Piece(answer, (clause, role)), Piece(after)]
        elif token in ("S", "O", "T"):
            subject = first.subject if token == "S" else first.subject.replace("{E}", "{T}")
            out += [Piece(piece.text) for piece in passage.pieces(subject, first.entity)]
        elif token == "N":
            out.append(Piece("they" if first.plural else PRONOUNS[first.entity.pron][0]))
        elif match := re.fullmatch(r"([VPB])(\d?)", token):
            clause = clauses[int(match[2] or 1) - 1]
            out.append(Piece({"V": clause.verb(), "P": clause.verbs[0][2], "B": clause.verbs[0][1]}[match[1]]))
        elif token == "D":
            out.append(Piece(first.passive(0, first.many())))
        else:
            out.append(Piece(token))
    return tidy(out)


def tidy(pieces: list[Piece]) -> list[Piece]:
    """No space before punctuation where a role was left out."""
    out: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        text = piece.text
        if out and text[0] in ".,;":
            while out and not out[-1].text.strip() and not out[-1].fact:
                out.pop()
            if not out[-1].fact:
                out[-1] = Piece(out[-1].text.rstrip())
        if out and out[-1].text.endswith(" ") and text.startswith(" "):
            text = text.lstrip()
        out.append(Piece(text, piece.fact))
    return [piece for piece in out if piece.text]


def question(passage: Passage, clause: Clause, role: str, form: str, name: str) -> str | None:
    """A question for `role`; None where the form needs what the passage doesn't state."""
    rng = passage.rng
    which = rng.randrange(len(clause.verbs))
    obj = clause.roles["obj"][0] + clause.roles["obj"][1] + clause.roles["obj"][2]
    if "{P}" in obj:
        if role == "subj" or " D " in f" {form} ":
            return None
        obj = obj.replace("{P}", PRONOUNS[clause.entity.pron][2])
    definite = re.sub(r"^an? ", "the ", obj) if clause.tense == "past" else obj
    subject = clause.subject.replace("{E}", name).replace("{T}", name)
    if clause.subject != "{E}" and role == "subj":
        return None
    person = clause.entity.topic.pron == "person"
    if not person and form.startswith(("By whom", "X D by whom")):
        return None
    for extra in re.findall(r"\[\?(\w+)\]", form):
        said = extra in clause.roles and extra != role and (clause, extra) in passage.stated
        form = form.replace(
            f"[?{extra}]",
            " " + "".join(clause.roles[extra]).replace("{P}", PRONOUNS[clause.entity.pron][2]) if said else "",
        )
    if "year" in form and not re.fullmatch(r"\d{4}", clause.roles["time"][1]):
        return None
    do = "did" if clause.tense == "past" else ("do" if clause.plural else "does")
    noun = clause.entity.topic.noun
    who = rng.choice(("Who", "Who", f"Which {noun}")) if person else rng.choice((f"Which {noun}", f"What {noun}"))
    many = clause.many() if role != "obj" else False
    if clause.tense == "pres":
        form = (
            form.replace("What was the reason", "What is the reason")
            .replace("What led", "What leads")
            .replace("Who was", "Who is")
            .replace("What made", "What makes")
            .replace("What caused", "What causes")
        )
    else:
        form = form.replace("What is used", "What was used").replace("What is needed", "What was needed")
    words = {
        "S": subject,
        "O": subject,
        "V": clause.verb(which),
        "B": clause.verbs[which][1],
        "P": clause.verbs[which][2],
        "D": clause.passive(which, many),
        "X": definite,
        "DO": do,
        "WHO": who,
        "NOUN": noun,
    }
    if " D X" in form or " D X?" in form:  # inversion: "when was the poem written"
        be, _, participle = words["D"].partition(" ")
        form = form.replace("D X", f"{be} X {participle}")
    text = re.sub(r"\b(DO|WHO|NOUN|[SOVBPDX])\b", lambda m: words[m[1]], form)
    return text[0].upper() + text[1:]
