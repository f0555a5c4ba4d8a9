"""Which of the teacher's layers each layer of the student learns from; layers are counted from 1 as people do."""

from configs.errors import UsageError


def layer_map(asked: str, student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """g(1) ... g(M) for a student of M layers and a teacher of N.

    asked: "uniform", floor(m N / M + 1/2): 12 to 4 is 3, 6, 9, 12 and 6 to 4 is 2, 3, 5, 6; "last", the teacher's
    last M layers; or a list like "3,6,9,12".
    Raises: UsageError for a student deeper than its teacher, or a list that is not one rising number a layer.
    """
    if student_layers > teacher_layers:
        raise UsageError(
            f"the student has {student_layers} layers, the teacher {teacher_layers}; a layer learns from one of the "
            f"teacher's, in order: choose --layers {teacher_layers} or less, or a deeper teacher"
        )
    n, m = teacher_layers, student_layers
    uniform = tuple((2 * layer * n + m) // (2 * m) for layer in range(1, m + 1))  # in whole numbers: no rounding
    if asked == "uniform":
        return uniform
    if asked == "last":
        return tuple(range(teacher_layers - student_layers + 1, teacher_layers + 1))
    need = f"needed are {student_layers} rising numbers from 1 to {teacher_layers}, as in {listed(uniform)}"
    try:
        given = tuple(int(word) for word in asked.split(","))
    except ValueError:
        raise UsageError(f"--layer-map {asked!r} is neither uniform, last nor a list; {need}") from None
    if len(given) != student_layers:
        raise UsageError(f"--layer-map {asked} names {len(given)} layers, the student has {student_layers}; {need}")
    outside = [number for number in given if not 1 <= number <= teacher_layers]
    if outside:
        raise UsageError(f"--layer-map {asked}: the teacher has no layer {outside[0]}; {need}")
    if list(given) != sorted(set(given)):
        raise UsageError(f"--layer-map {asked} is not rising; {need}")
    return given


def listed(layers: tuple[int, ...]) -> str:
    """As --layer-map takes it."""
    return ",".join(map(str, layers))
