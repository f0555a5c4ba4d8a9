"""The forms that a verb frame can take: sentences, joined sentences, and questions by role.

Each comes twice: for everybody, and for the split dev-patterns alone.
"""

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
