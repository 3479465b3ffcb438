"""School contests: algebra, counting, number theory and geometry, written in LaTeX.

Where a search is what a programmer would write, the problem brings that program along.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import comb, gcd, lcm
from random import Random

from shared.synthetic.problems.problem import Family, Number, Problem, Step


def linear_equation(draw: Random) -> Problem:
    """One unknown on one side, or on both."""
    x, a, b = draw.randint(2, 30), draw.randint(3, 15), draw.randint(1, 60)
    if draw.random() < 0.5:
        c = a * x + b
        return Problem(
            question=f"Solve ${a}x + {b} = {c}$ for $x$.",
            given={"a": a, "b": b, "c": c},
            steps=(
                Step(f"Subtracting ${b}$ on both sides shows that ${a}x$ is #.", "right", "c - b"),
                Step(f"Dividing by ${a}$ shows that $x$ is #.", "x", "right / a"),
            ),
            answer=x,
        )
    c = draw.randint(2, a - 1)
    d = (a - c) * x + b
    return Problem(
        question=f"For which $x$ is ${a}x + {b}$ equal to ${c}x + {d}$?",
        given={"a": a, "b": b, "c": c, "d": d},
        steps=(
            Step("Collect the $x$ on the left: their number is #.", "left", "a - c"),
            Step("Collect the constants on the right, which gives #.", "right", "d - b"),
            Step("Hence $x$ is #.", "x", "right / left"),
        ),
        answer=x,
    )


def quadratic_equation(draw: Random) -> Problem:
    """The larger root of a quadratic with whole roots."""
    small, large = sorted(draw.sample(range(1, 25), 2))
    b, c = small + large, small * large
    return Problem(
        question=f"Find the larger solution of $x^2 - {b}x + {c} = 0$.",
        given={"b": b, "c": c},
        steps=(
            Step("The discriminant is #.", "discriminant", "b ** 2 - 4 * c"),
            Step("Its square root is #.", "root", "isqrt(discriminant)"),
            Step("The larger solution is #.", "x", "(b + root) / 2"),
        ),
        answer=large,
        program=f"answer = max(x for x in range(1, {c + 1}) if x * x - {b} * x + {c} == 0)",
    )


def common_divisor(draw: Random) -> Problem:
    """Euclid's algorithm."""
    factor = draw.randint(2, 40)
    a, b = factor * draw.randint(6, 40), factor * draw.randint(3, 30)
    if a % b == 0 or b % a == 0:
        return common_divisor(draw)
    given: dict[str, Number] = {"a": a, "b": b}
    steps: list[Step] = []
    high, low = max(a, b), min(a, b)
    while low:
        given |= {f"high{len(steps)}": high, f"low{len(steps)}": low}
        steps.append(Step("Next #.", f"rest{len(steps)}", f"high{len(steps)} % low{len(steps)}"))
        high, low = low, high % low
    steps[0] = replace(steps[0], say="Take remainders as Euclid did: #.")
    steps.append(Step("The last divisor is the greatest common divisor, so #.", "divisor", "gcd(a, b)"))
    return Problem(
        question=f"What is the greatest common divisor of ${a}$ and ${b}$?",
        given=given,
        steps=tuple(steps),
        answer=high,
        program=f"a, b = {a}, {b}\nwhile b:\n    a, b = b, a % b\nanswer = a",
    )


def multiples(draw: Random) -> Problem:
    """Counting by inclusion and exclusion."""
    a, b = sorted(draw.sample(range(2, 16), 2))
    limit, both = draw.randint(50, 900), lcm(a, b)
    return Problem(
        question=f"How many positive integers up to ${limit}$ are divisible by ${a}$ or by ${b}$?",
        given={"limit": limit, "a": a, "b": b, "both": both},
        steps=(
            Step(f"Multiples of ${a}$: #.", "by_a", "floor(limit / a)"),
            Step(f"Multiples of ${b}$: #.", "by_b", "floor(limit / b)"),
            Step(f"Those divisible by both are the multiples of ${both}$: #.", "by_both", "floor(limit / both)"),
            Step("We counted these twice, so the number is #.", "count", "by_a + by_b - by_both"),
        ),
        answer=sum(n % a == 0 or n % b == 0 for n in range(1, limit + 1)),
        program=f"answer = 0\nfor n in range(1, {limit + 1}):\n    if n % {a} == 0 or n % {b} == 0:\n"
        "        answer += 1",
    )


def fraction_sum(draw: Random) -> Problem:
    """Two fractions on a common denominator."""
    b, d = draw.sample(range(2, 21), 2)
    a, c = draw.randint(1, b - 1), draw.randint(1, d - 1)
    return Problem(
        question=f"Write $\\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{d}}}$ as one fraction in lowest terms.",
        given={"a": a, "b": b, "c": c, "d": d, "common": lcm(b, d)},
        steps=(
            Step(f"The common denominator is ${lcm(b, d)}$."),
            Step("The first numerator becomes #.", "first", "a * common / b"),
            Step("The second numerator becomes #.", "second", "c * common / d"),
            Step("The numerators add up to #.", "top", "first + second"),
            Step("In lowest terms: #.", "result", "top / common"),
        ),
        answer=Fraction(a, b) + Fraction(c, d),
        program=f"answer = Fraction({a}, {b}) + Fraction({c}, {d})",
    )


def arithmetic_sequence(draw: Random) -> Problem:
    """A term, or the sum of the first terms."""
    first, gap, count = draw.randint(1, 20), draw.randint(2, 12), draw.randint(8, 40)
    shown = ", ".join(str(first + i * gap) for i in range(3))
    last = Step(f"Term number ${count}$ is #.", "last", "first + (count - 1) * gap")
    given: dict[str, Number] = {"first": first, "gap": gap, "count": count}
    if draw.random() < 0.5:
        return Problem(
            question=f"What is term number ${count}$ of the arithmetic sequence ${shown}, \\ldots$?",
            given=given,
            steps=(Step(f"Two neighbors differ by ${gap}$."), last),
            answer=first + gap * (count - 1),
        )
    return Problem(
        question=f"What is the sum of the first ${count}$ terms of the arithmetic sequence ${shown}, \\ldots$?",
        given=given,
        steps=(
            last,
            Step("The mean of the first and the last term is #.", "mean", "(first + last) / 2"),
            Step("The sum is #.", "total", "mean * count"),
        ),
        answer=sum(range(first, first + gap * count, gap)),
        program=f"answer = 0\nterm = {first}\nfor i in range({count}):\n    answer += term\n    term += {gap}",
    )


def power_remainder(draw: Random) -> Problem:
    """A power modulo a small number, by its cycle."""
    base, modulus, exponent = draw.randint(2, 12), draw.randint(5, 19), draw.randint(20, 400)
    if gcd(base, modulus) > 1 or base % modulus == 1:
        return power_remainder(draw)
    cycle = next(k for k in range(1, modulus) if pow(base, k, modulus) == 1)
    return Problem(
        question=f"Find the remainder when ${base}^{{{exponent}}}$ is divided by ${modulus}$.",
        given={"base": base, "modulus": modulus, "exponent": exponent, "cycle": cycle},
        steps=(
            Step(
                "The powers repeat as soon as one leaves the remainder $1$, first #.", "one", "base ** cycle % modulus"
            ),
            Step("In the exponent only this remainder counts: #.", "short", "exponent % cycle"),
            Step("So the remainder is #.", "rest", "base ** short % modulus"),
        ),
        answer=pow(base, exponent, modulus),
        program=f"answer = 1\nfor i in range({exponent}):\n    answer = answer * {base} % {modulus}",
    )


def right_triangle(draw: Random) -> Problem:
    """The longest side, or a leg, of a right triangle with whole sides."""
    m, n = sorted(draw.sample(range(1, 9), 2), reverse=True)
    scale = draw.randint(1, 6)
    a, b, c = scale * (m * m - n * n), scale * 2 * m * n, scale * (m * m + n * n)
    shape = draw.choice(("right triangle", "rectangle"))
    if shape == "rectangle":
        question = f"A rectangle has sides of length ${a}$ and ${b}$. How long is its diagonal?"
    else:
        question = f"The legs of a right triangle have length ${a}$ and ${b}$. How long is the hypotenuse?"
    return Problem(
        question=question,
        given={"a": a, "b": b},
        steps=(
            Step("By the Pythagorean theorem the square of the length is #.", "square", "a ** 2 + b ** 2"),
            Step("So the length is #.", "length", "isqrt(square)"),
        ),
        answer=c,
    )


def function_value(draw: Random) -> Problem:
    """A quadratic function at a point."""
    a, b, c, x = draw.randint(2, 9), draw.randint(2, 12), draw.randint(1, 30), draw.randint(-6, 9)
    name = draw.choice("fgh")
    return Problem(
        question=f"Let ${name}(x) = {a}x^2 - {b}x + {c}$. What is ${name}({x})$?",
        given={"a": a, "b": b, "c": c, "x": x},
        steps=(
            Step("The first term is #.", "first", "a * x ** 2"),
            Step("The second term is #.", "second", "b * x"),
            Step("Together: #.", "result", "first - second + c"),
        ),
        answer=(a * x - b) * x + c,
    )


def committee(draw: Random) -> Problem:
    """Choosing without order, from one group or from two."""
    women, men = draw.randint(4, 12), draw.randint(4, 12)
    k, m = draw.randint(2, 4), draw.randint(2, 4)
    group = draw.choice(("committee", "team", "choir", "jury"))
    return Problem(
        question=f"In how many ways can a {group} of ${k}$ women and ${m}$ men be chosen from ${women}$ women and "
        f"${men}$ men?",
        given={"women": women, "men": men, "k": k, "m": m},
        steps=(
            Step("Ways to choose the women: #.", "first", "comb(women, k)"),
            Step("Ways to choose the men: #.", "second", "comb(men, m)"),
            Step("Each choice goes with each other one: #.", "ways", "first * second"),
        ),
        answer=comb(women, k) * comb(men, m),
    )


def dice(draw: Random) -> Problem:
    """The chance of a sum of two dice with any number of faces."""
    faces = draw.choice((4, 6, 8, 10, 12))
    total = draw.randint(3, 2 * faces - 1)
    lowest, highest = max(1, total - faces), min(faces, total - 1)
    ways = sum(a + b == total for a in range(1, faces + 1) for b in range(1, faces + 1))
    numbered = f"two fair dice whose faces show the numbers $1$ to ${faces}$"
    return Problem(
        question=draw.choice(
            (
                f"You roll {numbered}. What is the probability that the sum is ${total}$?",
                f"We roll {numbered}. With which probability do they add up to ${total}$?",
            )
        ),
        given={"faces": faces, "lowest": lowest, "highest": highest},
        steps=(
            Step(
                f"The first die may show ${lowest}$ to ${highest}$, which is # cases.", "ways", "highest - lowest + 1"
            ),
            Step("The number of all cases is #.", "cases", "faces ** 2"),
            Step("The probability is #.", "chance", "ways / cases"),
        ),
        answer=Fraction(ways, faces**2),
        program=f"faces = range(1, {faces + 1})\nways = 0\nfor a in faces:\n    for b in faces:\n"
        f"        if a + b == {total}:\n            ways += 1\nanswer = Fraction(ways, {faces} ** 2)",
    )


CONTEST: tuple[Family, ...] = (
    *(linear_equation, quadratic_equation, common_divisor, multiples, fraction_sum, arithmetic_sequence),
    *(power_remainder, right_triangle, function_value, committee, dice),
)
