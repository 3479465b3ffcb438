"""Which number is larger: decimals, fractions, signs."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from shared.synthetic.problems.problem import Family, Problem, Step


def two_decimals(draw: Random) -> Problem:
    """Decimals of different length, where the longer one need not be larger."""
    whole, digits = draw.randint(0, 40), draw.sample(range(1, 10), 3)
    first, second = f"{whole}.{digits[0]}", f"{whole}.{digits[1]}{digits[2]}"
    if draw.random() < 0.5:
        first, second = second, first
    larger = max(first, second, key=Fraction)
    return Problem(
        question=draw.choice(
            (f"Which is larger, {first} or {second}?", f"Choose the larger one: {first} or {second}.")
        ),
        steps=(
            Step(f"Both numbers have the whole part {whole}."),
            Step(f"At the first decimal, {max(digits[:2])} is more than {min(digits[:2])}."),
        ),
        answer=larger,
    )


def two_fractions(draw: Random) -> Problem:
    """Fractions, compared by cross products."""
    b, d = draw.sample(range(3, 30), 2)
    a, c = draw.randint(1, b - 1), draw.randint(1, d - 1)
    if a * d == b * c:
        return two_fractions(draw)
    smaller = draw.random() < 0.5
    pick = min if smaller else max
    return Problem(
        question=f"Which fraction is {'smaller' if smaller else 'larger'}: {a}/{b} or {c}/{d}?",
        given={"a": a, "b": b, "c": c, "d": d},
        steps=(
            Step(f"For {a}/{b} the cross product is #.", "first", "a * d"),
            Step(f"For {c}/{d} the cross product is #.", "second", "c * b"),
            Step("The fraction with the larger product is the larger one."),
        ),
        answer=pick(f"{a}/{b}", f"{c}/{d}", key=Fraction),
    )


def order_of_three(draw: Random) -> Problem:
    """Whole numbers with signs, sorted."""
    numbers = draw.sample(range(-60, 61), 3)
    rising = sorted(numbers)
    return Problem(
        question=f"Sort from the least to the greatest: {', '.join(map(str, numbers))}.",
        steps=(Step(f"The least number is {rising[0]}."), Step(f"The greatest number is {rising[2]}.")),
        answer=", ".join(map(str, rising)),
    )


def true_or_false(draw: Random) -> Problem:
    """A statement about two numbers."""
    first, second = draw.sample(range(100, 9999), 2)
    sign = draw.choice("<>")
    given = {"high": max(first, second), "low": min(first, second)}
    return Problem(
        question=f"True or false: {first} {sign} {second}?",
        given=given,
        steps=(Step(f"The difference #, so {given['high']} is the larger number.", "difference", "high - low"),),
        answer="true" if (first < second) == (sign == "<") else "false",
    )


COMPARISONS: tuple[Family, ...] = (two_decimals, two_fractions, order_of_three, true_or_false)
