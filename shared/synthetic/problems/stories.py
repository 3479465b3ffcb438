"""Everyday stories: grade-school word problems of two to four steps."""

from __future__ import annotations

from random import Random

from shared.synthetic.problems.problem import Family, Problem, Step

NAMES = (
    *("Ada", "Amir", "Bella", "Carlos", "Chen", "Dana", "Elif", "Farah", "Gita", "Hugo", "Ines", "Jonas", "Kofi"),
    *("Lena", "Marek", "Nadia", "Omar", "Priya", "Rosa", "Sami", "Tara", "Umut", "Vera", "Wanda", "Yuki", "Zoe"),
)
GOODS = ("pens", "apples", "notebooks", "mugs", "candles", "plants", "tickets", "puzzles", "lamps", "scarves", "kites")


def shopping(draw: Random) -> Problem:
    """Several things at one price, paid with too much."""
    name, goods = draw.choice(NAMES), draw.choice(GOODS)
    count, price = draw.randint(2, 12), draw.randint(2, 15)
    paid = (count * price // 50 + 1) * 50
    questions = (
        f"{name} buys {count} {goods} for ${price} each and pays with ${paid}. How much change does {name} get?",
        f"At the market, {goods} cost ${price} each. {name} takes {count} of them and hands over ${paid}. "
        "How many dollars come back?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"count": count, "price": price, "paid": paid},
        steps=(
            Step(f"The {goods} cost # dollars.", "cost", "count * price"),
            Step(f"{name} gets back # dollars.", "change", "paid - cost"),
        ),
        answer=paid - count * price,
    )


def saving(draw: Random) -> Problem:
    """Weeks until there is enough money."""
    name, weeks = draw.choice(NAMES), draw.randint(3, 20)
    weekly, saved = draw.randint(3, 25), draw.randint(10, 90)
    goal, price = draw.choice(("a bike", "a tent", "a guitar", "a camera", "a desk")), saved + weekly * weeks
    questions = (
        f"{name} wants {goal} that costs ${price}. {name} has ${saved} now and saves ${weekly} every week. "
        f"After how many weeks can {name} buy it?",
        f"{name} has put aside ${saved} for {goal}. The price is ${price}, and each week adds ${weekly}. "
        "How many weeks are left?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"price": price, "saved": saved, "weekly": weekly},
        steps=(
            Step("The money still missing is # dollars.", "missing", "price - saved"),
            Step(f"At {weekly} dollars a week this takes # weeks.", "weeks", "missing / weekly"),
        ),
        answer=weeks,
    )


def baking(draw: Random) -> Problem:
    """Trays of rolls, some sold, the rest packed."""
    name, trays, rolls = draw.choice(NAMES), draw.randint(4, 15), draw.randint(12, 30)
    size = draw.choice((4, 5, 6, 8))
    boxes = draw.randint(2, trays * rolls // size - 1)
    sold = trays * rolls - size * boxes
    return Problem(
        question=f"{name} bakes {trays} trays with {rolls} rolls on each tray. {sold} rolls are sold in the morning, "
        f"and the rest go into boxes of {size}. How many boxes does {name} fill?",
        given={"trays": trays, "rolls": rolls, "sold": sold, "size": size},
        steps=(
            Step("All trays together hold # rolls.", "baked", "trays * rolls"),
            Step("After the morning # rolls are left.", "left", "baked - sold"),
            Step("They fill # boxes.", "boxes", "left / size"),
        ),
        answer=boxes,
    )


def reading(draw: Random) -> Problem:
    """A book read at two speeds."""
    name, days, slow = draw.choice(NAMES), draw.randint(2, 9), draw.randint(8, 30)
    fast, rest = slow + draw.randint(2, 20), draw.randint(2, 12)
    pages = days * slow + fast * rest
    questions = (
        f"A book has {pages} pages. For {days} days {name} reads {slow} pages a day, and after that {fast} pages a "
        "day. How many more days does the book last?",
        f"{name} is reading a book of {pages} pages: {slow} pages on each of the first {days} days, then {fast} pages "
        f"on every later day. How many later days does {name} need?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"pages": pages, "days": days, "slow": slow, "fast": fast},
        steps=(
            Step(f"In the first {days} days {name} reads # pages.", "read", "days * slow"),
            Step("That leaves # pages.", "left", "pages - read"),
            Step(f"At {fast} pages a day they last # days.", "later_days", "left / fast"),
        ),
        answer=rest,
    )


def wages(draw: Random) -> Problem:
    """Normal hours and better paid extra hours."""
    name, job = draw.choice(NAMES), draw.choice(("in a cafe", "in a library", "on a farm", "in a shop", "at a museum"))
    wage, extra, hours, late = draw.randint(9, 30), draw.randint(2, 9), draw.randint(10, 40), draw.randint(2, 10)
    return Problem(
        question=f"{name} works {job} for ${wage} an hour. Each extra hour pays ${extra} more than a normal one. "
        f"This week {name} works {hours} normal hours and {late} extra hours. How much does {name} earn?",
        given={"wage": wage, "extra": extra, "hours": hours, "late": late},
        steps=(
            Step("The normal hours bring # dollars.", "normal_pay", "wage * hours"),
            Step("An extra hour pays # dollars.", "extra_wage", "wage + extra"),
            Step("The extra hours bring # dollars.", "extra_pay", "extra_wage * late"),
            Step("The whole week brings # dollars.", "total", "normal_pay + extra_pay"),
        ),
        answer=wage * (hours + late) + extra * late,
    )


def sharing(draw: Random) -> Problem:
    """Some kept, the rest in equal parts."""
    name, friends, each, kept = draw.choice(NAMES), draw.randint(3, 12), draw.randint(3, 25), draw.randint(2, 30)
    thing = draw.choice(("shells", "stickers", "cookies", "marbles", "cards", "beads", "stamps"))
    total = kept + friends * each
    questions = (
        f"{name} has {total} {thing}, keeps {kept} and shares the rest equally among {friends} friends. "
        f"How many {thing} does each friend get?",
        f"Out of {total} {thing}, {name} sets {kept} aside. The others are split into {friends} equal parts. "
        "How many are in one part?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"total": total, "kept": kept, "friends": friends},
        steps=(
            Step(f"There are # {thing} to share.", "shared", "total - kept"),
            Step("Each part has # of them.", "each", "shared / friends"),
        ),
        answer=each,
    )


def trip(draw: Random) -> Problem:
    """Two legs at two speeds."""
    name, way = draw.choice(NAMES), draw.choice(("drives", "rides", "travels"))
    slow, fast = 5 * draw.randint(4, 12), 5 * draw.randint(13, 24)
    first, second = draw.randint(2, 6), draw.randint(2, 6)
    return Problem(
        question=f"{name} {way} {first} hours at {slow} kilometers per hour. After a break {name} goes on for "
        f"{second} hours at {fast} kilometers per hour. How many kilometers is the whole trip?",
        given={"first_hours": first, "first_speed": slow, "second_hours": second, "second_speed": fast},
        steps=(
            Step("The first part is # kilometers long.", "first_part", "first_hours * first_speed"),
            Step("The second part is # kilometers long.", "second_part", "second_hours * second_speed"),
            Step("Together they make # kilometers.", "distance", "first_part + second_part"),
        ),
        answer=first * slow + second * fast,
    )


def collections(draw: Random) -> Problem:
    """Three people, each compared with the one before."""
    first, second, third = draw.sample(NAMES, 3)
    thing, factor = draw.choice(("stamps", "coins", "books", "toy cars", "postcards", "seeds")), draw.randint(2, 5)
    own = draw.randint(8, 40)
    fewer = draw.randint(2, own)
    return Problem(
        question=f"{first} has {own} {thing}. {second} has {factor} times as many as {first}, and {third} has {fewer} "
        f"fewer than {second}. How many {thing} do the three have together?",
        given={"own": own, "factor": factor, "fewer": fewer},
        steps=(
            Step(f"{second} has # {thing}.", "second", "own * factor"),
            Step(f"{third} has # {thing}.", "third", "second - fewer"),
            Step(f"Together they have # {thing}.", "total", "own + second + third"),
        ),
        answer=own + 2 * own * factor - fewer,
    )


def sale(draw: Random) -> Problem:
    """A discount in percent on several things."""
    name, goods, count = draw.choice(NAMES), draw.choice(GOODS), draw.randint(2, 15)
    price, percent = 20 * draw.randint(1, 12), 5 * draw.randint(1, 10)
    return Problem(
        question=f"A shop sells {goods} for ${price} each and takes {percent}% off today. {name} buys {count} of them "
        "today. How many dollars does that cost?",
        given={"price": price, "percent": percent, "count": count},
        steps=(
            Step("The price drops by # dollars.", "drop", "price * percent / 100"),
            Step(f"Today one of the {goods} costs # dollars.", "today", "price - drop"),
            Step("All of them cost # dollars.", "cost", "today * count"),
        ),
        answer=price * (100 - percent) * count // 100,
    )


def tank(draw: Random) -> Problem:
    """Water in, water out."""
    inflow, minutes = draw.randint(6, 40), draw.randint(4, 60)
    leak = draw.randint(2, inflow - 2)
    volume = (inflow - leak) * minutes
    vessel = draw.choice(("tank", "pool", "pond", "barrel"))
    questions = (
        f"A {vessel} holds {volume} liters. A pipe brings {inflow} liters per minute, but {leak} liters per minute "
        f"leak out. How many minutes does it take to fill the empty {vessel}?",
        f"Each minute {inflow} liters flow into an empty {vessel} and {leak} liters flow out again. "
        f"When has it collected {volume} liters? Give the minutes.",
    )
    return Problem(
        question=draw.choice(questions),
        given={"volume": volume, "inflow": inflow, "leak": leak},
        steps=(
            Step(f"Each minute the {vessel} gains # liters.", "gain", "inflow - leak"),
            Step("So it takes # minutes.", "minutes", "volume / gain"),
        ),
        answer=minutes,
    )


STORIES: tuple[Family, ...] = (shopping, saving, baking, reading, wages, sharing, trip, collections, sale, tank)
