"""Short questions that take a step or two: more or fewer, groups, units."""

from __future__ import annotations

from random import Random

from shared.synthetic.problems.problem import Family, Problem, Step


def joining(draw: Random) -> Problem:
    """One number more, or fewer."""
    place, thing = draw.choice(
        (("on the shelf", "books"), ("in the field", "sheep"), ("in the box", "crayons"), ("on the bus", "people"))
    )
    number, change = draw.randint(12, 400), draw.randint(2, 200)
    if draw.random() < 0.5 or change >= number:
        return Problem(
            question=f"There are {number} {thing} {place} and {change} more come. How many {thing} are there?",
            given={"number": number, "more": change},
            steps=(Step(f"Now there are # {thing}.", "total", "number + more"),),
            answer=number + change,
        )
    return Problem(
        question=f"There were {number} {thing} {place}. Now {change} are gone. How many {thing} are left?",
        given={"number": number, "gone": change},
        steps=(Step(f"There are # {thing} left.", "left", "number - gone"),),
        answer=number - change,
    )


def packing(draw: Random) -> Problem:
    """Equal groups, put together or taken apart."""
    thing, pack = draw.choice((("eggs", "box"), ("bottles", "crate"), ("letters", "bag"), ("chairs", "row")))
    size, count = draw.randint(3, 60), draw.randint(3, 90)
    if draw.random() < 0.5:
        return Problem(
            question=f"One {pack} has {size} {thing}. How many {thing} are in {count} of them?",
            given={"size": size, "count": count},
            steps=(Step(f"That makes # {thing}.", "total", "size * count"),),
            answer=size * count,
        )
    return Problem(
        question=f"{size * count} {thing} are put in groups. Each {pack} takes {size}. How many groups are there?",
        given={"total": size * count, "size": size},
        steps=(Step("The number of groups is #.", "groups", "total / size"),),
        answer=count,
    )


def motion(draw: Random) -> Problem:
    """Speed, time and distance with a change of units."""
    mover = draw.choice(("car", "train", "ship", "drone", "horse", "runner"))
    meters, minutes = draw.randint(2, 60), draw.randint(2, 45)
    return Problem(
        question=f"A {mover} moves {meters} meters every second. How many meters does it move in {minutes} minutes?",
        given={"meters": meters, "minutes": minutes},
        steps=(
            Step("The time is # seconds.", "seconds", "minutes * 60"),
            Step("The distance is # meters.", "distance", "meters * seconds"),
        ),
        answer=60 * meters * minutes,
    )


def weighing(draw: Random) -> Problem:
    """Parts of a weight."""
    thing = draw.choice(("salt", "iron", "sand", "sugar", "copper", "rice"))
    bags, weight, lost = draw.randint(2, 40), draw.randint(5, 60), draw.randint(2, 9)
    return Problem(
        question=f"{bags} bags of {thing} weigh {weight} kilograms each. While they are carried, {lost} kilograms are "
        f"lost. How many kilograms of {thing} arrive?",
        given={"bags": bags, "weight": weight, "lost": lost},
        steps=(
            Step("The bags weigh # kilograms.", "full", "bags * weight"),
            Step("What arrives weighs # kilograms.", "arrived", "full - lost"),
        ),
        answer=bags * weight - lost,
    )


FACTS: tuple[Family, ...] = (joining, packing, motion, weighing)
