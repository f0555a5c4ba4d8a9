"""Which of the teacher's layers a student's layer learns from."""

import pytest

from configs.errors import UsageError
from distill.layer_map import layer_map


@pytest.mark.parametrize(("student", "teacher", "expected"), [
    (4, 12, (3, 6, 9, 12)),
    (6, 12, (2, 4, 6, 8, 10, 12)),
    (4, 6, (2, 3, 5, 6)),
    (3, 6, (2, 4, 6)),
    (5, 12, (2, 5, 7, 10, 12)),
    (1, 6, (6,)),
    (6, 6, (1, 2, 3, 4, 5, 6)),
])  # fmt: skip
def test_uniform_spreads_the_layers_evenly_and_ends_at_the_last(student, teacher, expected):
    assert layer_map("uniform", student, teacher) == expected


@pytest.mark.parametrize("teacher", range(1, 25))
def test_uniform_is_rising_for_every_depth(teacher):
    for student in range(1, teacher + 1):
        found = layer_map("uniform", student, teacher)
        assert list(found) == sorted(set(found))
        assert (found[-1], len(found)) == (teacher, student)
        assert found[0] >= 1


def test_last_takes_the_last_layers():
    assert layer_map("last", 4, 12) == (9, 10, 11, 12)


def test_a_list_is_taken_as_it_is():
    assert layer_map("1,2,12", 3, 12) == (1, 2, 12)
    assert layer_map(" 3, 6 ", 2, 6) == (3, 6)


# What is refused -> what the error says.
BAD = {
    "3,6,9": "names 3 layers, the student has 4",
    "3,9,6,12": "is not rising",
    "3,3,9,12": "is not rising",
    "0,6,9,12": "no layer 0",
    "3,6,9,13": "no layer 13",
    "every": "neither uniform, last nor a list",
    "3,6,9,": "neither uniform, last nor a list",
}


@pytest.mark.parametrize("asked", BAD)
def test_a_list_that_cannot_be_meant_is_refused_with_one_that_can(asked):
    with pytest.raises(UsageError, match=BAD[asked]) as caught:
        layer_map(asked, 4, 12)
    assert "3,6,9,12" in str(caught.value)


@pytest.mark.parametrize("asked", ["uniform", "last", "1,2,3,4"])
def test_a_student_deeper_than_its_teacher_is_refused(asked):
    with pytest.raises(UsageError, match=r"the student has 4 layers, the teacher 3; .* --layers 3 or less"):
        layer_map(asked, 4, 3)
