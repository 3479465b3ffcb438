"""First university courses: calculus, linear algebra, probability, number theory."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from random import Random

from shared.synthetic.problems.problem import Family, Number, Problem, Step


def derivative(draw: Random) -> Problem:
    """The slope of a cubic at a point."""
    a, b, c, x = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 20), draw.randint(-3, 6)
    questions = (
        f"Find the slope of the curve y = {a}x^3 + {b}x^2 + {c}x at the point x = {x}.",
        f"Let f(x) = {a}x^3 + {b}x^2 + {c}x. What is the value of the derivative f'({x})?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"a": a, "b": b, "c": c, "x": x},
        steps=(
            Step(f"By the power rule, the derivative is f'(x) = {3 * a}x^2 + {2 * b}x + {c}."),
            Step("The first term has the value #.", "first", "3 * a * x ** 2"),
            Step("The second term has the value #.", "second", "2 * b * x"),
            Step("We add the terms: #.", "slope", "first + second + c"),
        ),
        answer=x * (3 * a * x + 2 * b) + c,
    )


def integral(draw: Random) -> Problem:
    """The area under a parabola from zero on."""
    a, b, upper = 3 * draw.randint(2, 9), 2 * draw.randint(2, 12), draw.randint(1, 12)
    questions = (
        f"Compute the integral of {a}x^2 + {b}x from 0 to {upper}.",
        f"What is the area between the x-axis and the curve y = {a}x^2 + {b}x for x from 0 to {upper}?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"a": a, "b": b, "upper": upper},
        steps=(
            Step(f"An antiderivative is F(x) = {a // 3}x^3 + {b // 2}x^2, and F(0) is 0."),
            Step("Its first term at the upper limit is #.", "first", "a / 3 * upper ** 3"),
            Step("Its second term at the upper limit is #.", "second", "b / 2 * upper ** 2"),
            Step("The integral is #.", "area", "first + second"),
        ),
        answer=upper**2 * (2 * a * upper + 3 * b) // 6,
    )


def determinant(draw: Random) -> Problem:
    """Of two rows and two columns."""
    a, b, c, d = (draw.randint(-9, 12) for _ in range(4))
    return Problem(
        question=f"Find the determinant of the matrix with rows ({a}, {b}) and ({c}, {d}).",
        given={"a": a, "b": b, "c": c, "d": d},
        steps=(
            Step("The product on the main diagonal is #.", "main", "a * d"),
            Step("The product on the other diagonal is #.", "other", "b * c"),
            Step("The determinant is the difference: #.", "determinant", "main - other"),
        ),
        answer=a * d - b * c,
    )


def linear_system(draw: Random) -> Problem:
    """Two unknowns, one eliminated."""
    x, y = draw.randint(1, 12), draw.randint(1, 12)
    a, b, c = draw.randint(2, 7), draw.randint(2, 7), draw.randint(2, 7)
    first, second = a * x + b * y, x + c * y
    if a * c == b:
        return linear_system(draw)
    return Problem(
        question=f"Solve the system {a}x + {b}y = {first} and x + {c}y = {second}. What is the value of y?",
        given={"a": a, "b": b, "c": c, "first": first, "second": second},
        steps=(
            Step(f"Multiply the second equation by {a}, so that both start with {a}x."),
            Step("Its y then has the factor #.", "factor", "a * c"),
            Step("Its right side becomes #.", "right", "a * second"),
            Step("Subtract the first equation. The factor of y is now #.", "left", "factor - b"),
            Step("The right side is now #.", "rest", "right - first"),
            Step("Therefore y is #.", "y", "rest / left"),
        ),
        answer=y,
    )


def dot_product(draw: Random) -> Problem:
    """Of two vectors in space."""
    u, v = ([draw.randint(-9, 9) for _ in range(3)] for _ in range(2))
    given: dict[str, Number] = {f"u{i}": value for i, value in enumerate(u)}
    given |= {f"v{i}": value for i, value in enumerate(v)}
    return Problem(
        question=f"Compute the dot product of the vectors ({', '.join(map(str, u))}) and ({', '.join(map(str, v))}).",
        given=given,
        steps=(
            Step("The first entries give #.", "p", "u0 * v0"),
            Step("The second entries give #.", "q", "u1 * v1"),
            Step("The third entries give #.", "r", "u2 * v2"),
            Step("The dot product is the sum: #.", "dot", "p + q + r"),
        ),
        answer=sum(a * b for a, b in zip(u, v, strict=True)),
    )


def expected_value(draw: Random) -> Problem:
    """Of a prize won with a probability."""
    prize, ticket = 10 * draw.randint(1, 60), draw.randint(2, 9)
    percent = 10 * draw.randint(1, 9)
    return Problem(
        question=f"A game costs {ticket} dollars. With probability {percent}% the player wins {prize} dollars, "
        "otherwise nothing. What is the expected gain of one game in dollars?",
        given={"prize": prize, "percent": percent, "ticket": ticket},
        steps=(
            Step("The expected prize is #.", "mean", "prize * percent / 100"),
            Step("The price of the game is paid in any case, so the expected gain is #.", "gain", "mean - ticket"),
        ),
        answer=prize // 10 * (percent // 10) - ticket,
    )


def geometric_series(draw: Random) -> Problem:
    """A finite one with a whole ratio."""
    first, base, count = draw.randint(1, 30), draw.randint(2, 5), draw.randint(4, 8)
    return Problem(
        question=f"A geometric series starts with {first} and each term is {base} times the one before. What is the "
        f"sum of its first {count} terms?",
        given={"first": first, "base": base, "count": count},
        steps=(
            Step(f"The sum of a geometric series is a(r^n - 1)/(r - 1), here with a = {first} and r = {base}."),
            Step("The power is #.", "power", "base ** count"),
            Step("The fraction is #.", "factor", "(power - 1) / (base - 1)"),
            Step("The sum is #.", "total", "first * factor"),
        ),
        answer=sum(first * base**i for i in range(count)),
    )


def modular_inverse(draw: Random) -> Problem:
    """The inverse of a number modulo a prime."""
    prime = draw.choice((7, 11, 13, 17, 19, 23, 29, 31, 37, 41))
    number = draw.randint(2, prime - 1)
    inverse = pow(number, -1, prime)
    questions = (
        f"Find the inverse of {number} modulo {prime}.",
        f"Which number from 1 to {prime - 1}, when multiplied by {number}, leaves the remainder 1 modulo {prime}?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"number": number, "prime": prime, "rounds": number * inverse // prime},
        steps=(
            Step(f"We look for a multiple of {prime} that, plus 1, can be divided by {number}."),
            Step("The first one gives #.", "product", "rounds * prime + 1"),
            Step("So the inverse is #.", "inverse", "product / number"),
        ),
        answer=inverse,
    )


def trace(draw: Random) -> Problem:
    """The second eigenvalue, from the sum of both."""
    first, second, shift = draw.randint(-6, 12), draw.randint(-6, 12), draw.randint(1, 9)
    a, d = first + shift, second - shift
    return Problem(
        question=f"A 2 by 2 matrix has the diagonal entries {a} and {d}. One of its eigenvalues is {first}. Find the "
        "other one.",
        given={"a": a, "d": d, "first": first},
        steps=(
            Step("The eigenvalues add up to the trace, which is #.", "trace", "a + d"),
            Step("The other eigenvalue is #.", "second", "trace - first"),
        ),
        answer=second,
    )


def variance(draw: Random) -> Problem:
    """Of three values around their mean."""
    middle, spread = draw.randint(8, 60), 3 * draw.randint(1, 3)
    low, high = middle - spread, middle + spread
    values = draw.sample((low, middle, high), 3)
    return Problem(
        question=f"What is the population variance of the three values {values[0]}, {values[1]} and {values[2]}?",
        given={"low": low, "middle": middle, "high": high},
        steps=(
            Step("The mean is #.", "mean", "(low + middle + high) / 3"),
            Step("The lowest value has the squared distance #.", "left", "(low - mean) ** 2"),
            Step("The highest value has the squared distance #.", "right", "(high - mean) ** 2"),
            Step("The value at the mean adds nothing, so the variance is #.", "variance", "(left + right) / 3"),
        ),
        answer=Fraction(sum(v * v for v in values), 3) - middle**2,
    )


def coin_tosses(draw: Random) -> Problem:
    """A binomial probability."""
    tosses = draw.randint(4, 12)
    heads = draw.randint(2, tosses - 1)
    coin = draw.choice(("A fair coin is", "A coin without bias is"))
    return Problem(
        question=f"{coin} tossed {tosses} times. What is the probability of exactly {heads} heads?",
        given={"tosses": tosses, "heads": heads},
        steps=(
            Step("The heads can fall in # ways.", "ways", "comb(tosses, heads)"),
            Step("There are # equally likely results.", "results", "2 ** tosses"),
            Step("The probability is #.", "chance", "ways / results"),
        ),
        answer=Fraction(comb(tosses, heads), 2**tosses),
    )


CALCULUS: tuple[Family, ...] = (derivative, integral, geometric_series)
ALGEBRA: tuple[Family, ...] = (determinant, linear_system, dot_product, trace, modular_inverse)
CHANCE: tuple[Family, ...] = (expected_value, variance, coin_tosses)
