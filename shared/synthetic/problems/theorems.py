"""Classical theorems, each put to use on numbers, with the program that would find the answer without the theorem."""

from __future__ import annotations

from itertools import permutations
from math import comb, gcd
from random import Random

from shared.synthetic.problems.problem import Family, Problem, Step


def handshakes(draw: Random) -> Problem:
    """Edges of a complete graph."""
    people = draw.randint(5, 120)
    place = draw.choice(("a meeting", "a party", "a conference", "a wedding"))
    return Problem(
        question=f"At {place}, {people} people all shake hands with each other once. How many handshakes are there?",
        given={"people": people},
        steps=(
            Step("Each person shakes # hands.", "each", "people - 1"),
            Step(
                "Counting per person counts every handshake twice, so their number is #.", "pairs", "people * each / 2"
            ),
        ),
        answer=comb(people, 2),
        program=f"answer = 0\nfor person in range({people}):\n    answer += person",
    )


def euler_formula(draw: Random) -> Problem:
    """Corners, edges and faces of a solid."""
    corners, faces = draw.randint(4, 40), draw.randint(4, 40)
    edges = corners + faces - 2
    return Problem(
        question=f"A convex solid has {corners} corners and {edges} edges. Use Euler's formula to find its faces.",
        given={"corners": corners, "edges": edges},
        steps=(
            Step("Euler's formula says that corners minus edges plus faces is 2."),
            Step("Hence the number of faces is #.", "faces", "2 - corners + edges"),
        ),
        answer=faces,
    )


def trees(draw: Random) -> Problem:
    """Cayley's formula."""
    nodes = draw.randint(3, 9)
    labels = draw.choice(("nodes", "points", "cities", "vertices", "islands"))
    return Problem(
        question=f"How many different trees connect {nodes} labeled {labels}?",
        given={"nodes": nodes},
        steps=(
            Step("By Cayley's formula the number of trees on n labeled nodes is n^(n - 2)."),
            Step("The exponent is #.", "exponent", "nodes - 2"),
            Step("The number of trees is #.", "trees", "nodes ** exponent"),
        ),
        answer=nodes ** (nodes - 2),
        program=f"answer = 1\nfor i in range({nodes} - 2):\n    answer *= {nodes}",
    )


def totient(draw: Random) -> Problem:
    """Euler's function of a product of two primes."""
    p, q = sorted(draw.sample((2, 3, 5, 7, 11, 13, 17, 19, 23, 29), 2))
    return Problem(
        question=f"How many integers from 1 to {p * q} have no common factor with {p * q}?",
        given={"p": p, "q": q},
        steps=(
            Step("The number is a product of two primes: #.", "n", "p * q"),
            Step("Euler's function multiplies each prime less one: #.", "phi", "(p - 1) * (q - 1)"),
        ),
        answer=sum(gcd(k, p * q) == 1 for k in range(1, p * q + 1)),
        program=f"answer = 0\nfor k in range(1, {p * q} + 1):\n    if gcd(k, {p * q}) == 1:\n        answer += 1",
    )


def fermat(draw: Random) -> Problem:
    """Fermat's little theorem."""
    prime = draw.choice((5, 7, 11, 13, 17, 19))
    base, rounds, rest = draw.randint(2, 4), draw.randint(2, 30), draw.randint(1, 4)
    exponent = rounds * (prime - 1) + rest
    return Problem(
        question=f"Use Fermat's little theorem to find the remainder of {base}^{exponent} modulo {prime}.",
        given={"base": base, "exponent": exponent, "prime": prime},
        steps=(
            Step(f"By Fermat, {base}^{prime - 1} leaves the remainder 1 modulo {prime}."),
            Step("So the exponent can be reduced: #.", "short", "exponent % (prime - 1)"),
            Step("The remainder is #.", "rest", "base ** short % prime"),
        ),
        answer=pow(base, exponent, prime),
        program=f"answer = pow({base}, {exponent}, {prime})",
    )


def pigeonhole(draw: Random) -> Problem:
    """The least number that forces a full box."""
    boxes, full = draw.randint(3, 60), draw.randint(2, 9)
    thing, box = draw.choice((("socks", "colors"), ("letters", "boxes"), ("birds", "nests"), ("guests", "tables")))
    return Problem(
        question=f"There are {boxes} {box}. How many {thing} are needed so that {full} must share one of the {box}?",
        given={"boxes": boxes, "full": full},
        steps=(
            Step("The pigeonhole principle looks at the worst case, in which no group is full yet."),
            Step(f"Then there are at most # {thing}.", "worst", "boxes * (full - 1)"),
            Step("One more makes a group full: #.", "needed", "worst + 1"),
        ),
        answer=boxes * full - boxes + 1,
        program=f"answer = 1\nfor box in range({boxes}):\n    answer += {full} - 1",
    )


def derangements(draw: Random) -> Problem:
    """Arrangements with nothing in its place."""
    count = draw.randint(3, 6)
    thing = draw.choice(("hats", "letters", "keys", "coats", "books", "cups"))
    end = draw.choice(("so that nobody gets the right one", "so that every one of them is wrong"))
    rule = "D(n) = (n - 1)(D(n - 1) + D(n - 2))"
    steps = [
        Step(f"Let D(n) be the number of ways for n things. It starts with 1 for n = 0 and 0 for n = 1, and {rule}.")
    ]
    steps += [Step(f"For {n}: #.", f"d{n}", f"{n - 1} * (d{n - 1} + d{n - 2})") for n in range(2, count + 1)]
    return Problem(
        question=f"In how many ways can {count} {thing} be given back to {count} people {end}?",
        given={"d0": 1, "d1": 0},
        steps=tuple(steps),
        answer=sum(all(i != p for i, p in enumerate(order)) for order in permutations(range(count))),
        program=f"answer, before = 0, 1\nfor n in range(2, {count} + 1):\n"
        "    answer, before = (n - 1) * (answer + before), answer",
    )


def grid_paths(draw: Random) -> Problem:
    """Shortest ways through a grid of streets."""
    east, north = draw.randint(2, 7), draw.randint(2, 7)
    who = draw.choice(("A taxi", "A robot", "An ant", "A walker"))
    return Problem(
        question=f"{who} goes {east} blocks east and {north} blocks north, one block at a time in any order. How many "
        "different ways are there?",
        given={"east": east, "north": north},
        steps=(
            Step("A way is a choice of the blocks that go east, so the binomial theorem counts them."),
            Step("The number of blocks is #.", "blocks", "east + north"),
            Step("The number of ways is #.", "ways", "comb(blocks, east)"),
        ),
        answer=comb(east + north, east),
        program=f"row = [1] * ({east} + 1)\nfor i in range({north}):\n    for j in range(1, {east} + 1):\n"
        "        row[j] += row[j - 1]\nanswer = row[-1]",
    )


def two_remainders(draw: Random) -> Problem:
    """The Chinese remainder theorem for two primes."""
    p, q = sorted(draw.sample((3, 5, 7, 11, 13), 2))
    number = draw.randint(q, p * q - 1)
    a, b = number % p, number % q
    rounds = number // q
    return Problem(
        question=f"Which number below {p * q} leaves the remainder {a} modulo {p} and the remainder {b} modulo {q}?",
        given={"p": p, "q": q, "b": b, "rounds": rounds},
        steps=(
            Step("By the Chinese remainder theorem there is exactly one such number."),
            Step(
                f"From {b} we go up by {q} until the remainder modulo {p} is right: #.", "check", "(b + rounds * q) % p"
            ),
            Step("The number is #.", "number", "b + rounds * q"),
        ),
        answer=number,
        program=f"answer = {b}\nwhile answer % {p} != {a}:\n    answer += {q}",
    )


THEOREMS: tuple[Family, ...] = (
    *(handshakes, euler_formula, trees, totient, fermat, pigeonhole, derangements, grid_paths, two_remainders),
)
