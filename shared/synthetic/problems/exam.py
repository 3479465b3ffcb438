"""Questions of multiple-choice exams: rates, ratios, percentages. Every answer is a positive whole number."""

from __future__ import annotations

from random import Random

from shared.synthetic.problems.problem import Family, Problem, Step


def profit(draw: Random) -> Problem:
    """Profit in percent."""
    thing = draw.choice(("chair", "watch", "bicycle", "radio", "coat", "painting", "phone", "carpet"))
    percent, cost = 5 * draw.randint(1, 16), 20 * draw.randint(2, 80)
    price = cost * (100 + percent) // 100
    questions = (
        f"A dealer buys a {thing} for ${cost} and sells it for ${price}. What is the profit in percent?",
        f"A {thing} that cost a trader ${cost} is sold at ${price}. By how many percent does the trader gain?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"cost": cost, "price": price},
        steps=(
            Step("The profit is # dollars.", "gain", "price - cost"),
            Step("As a percentage of the cost this is #.", "percent", "gain * 100 / cost"),
        ),
        answer=percent,
    )


def work_together(draw: Random) -> Problem:
    """Two workers with different speeds."""
    first, second = draw.sample("ABCDPQRSXY", 2)
    job = draw.choice(("paint a wall", "dig a canal", "print a book", "clean a hall", "pave a road", "sort the mail"))
    unit = draw.choice(("days", "hours"))
    p, q = draw.sample(range(1, 10), 2)
    scale = draw.randint(1, 12)
    slow, fast = scale * p * (p + q), scale * q * (p + q)
    return Problem(
        question=f"{first} can {job} in {slow} {unit} and {second} can do it in {fast} {unit}. "
        f"How many {unit} do they need if they work together?",
        given={"first": slow, "second": fast},
        steps=(
            Step("Let the whole job have # parts.", "parts", "first * second"),
            Step(f"In one {unit[:-1]} they finish # parts together.", "speed", "first + second"),
            Step(f"So they need # {unit}.", "time", "parts / speed"),
        ),
        answer=scale * p * q,
    )


def bridge(draw: Random) -> Problem:
    """A train that crosses something long."""
    speed, seconds = draw.randint(10, 40), draw.randint(10, 60)
    length = 10 * draw.randint(5, speed * seconds // 10 - 3)
    span = speed * seconds - length
    place = draw.choice(("bridge", "platform", "tunnel"))
    questions = (
        f"A train {length} meters long runs at {speed} meters per second. In how many seconds does it cross a {place} "
        f"of {span} meters?",
        f"How many seconds does a train of {length} meters need to pass a {place} that is {span} meters long, if it "
        f"moves {speed} meters per second?",
    )
    return Problem(
        question=draw.choice(questions),
        given={"train": length, "span": span, "speed": speed},
        steps=(
            Step(f"To pass the {place} the train must move # meters.", "way", "train + span"),
            Step("That takes # seconds.", "seconds", "way / speed"),
        ),
        answer=seconds,
    )


def missing_value(draw: Random) -> Problem:
    """An average before and after one value is taken out."""
    what = draw.choice(("numbers", "test scores", "weights", "ages", "prices", "daily temperatures"))
    count, average = draw.randint(4, 15), draw.randint(15, 90)
    rest = average - draw.randint(1, 7)
    return Problem(
        question=f"The average of {count} {what} is {average}. When one of them is taken out, the average of the "
        f"others is {rest}. What was taken out?",
        given={"count": count, "average": average, "rest": rest},
        steps=(
            Step(f"All {count} {what} add up to #.", "total", "count * average"),
            Step("There are # others.", "others", "count - 1"),
            Step("The others add up to #.", "other_total", "others * rest"),
            Step("The one taken out is #.", "missing", "total - other_total"),
        ),
        answer=rest + count * (average - rest),
    )


def ratio(draw: Random) -> Problem:
    """A sum shared in a ratio."""
    first, second = draw.sample("ABCDKLMN", 2)
    small, large = sorted(draw.sample(range(1, 12), 2))
    part = draw.randint(5, 120)
    total, wanted = part * (small + large), draw.choice(("larger", "smaller"))
    share, other = (large, small) if wanted == "larger" else (small, large)
    return Problem(
        question=f"{first} and {second} share ${total} in the ratio {small} : {large}. How many dollars is the "
        f"{wanted} share?",
        given={"total": total, "share": share, "other": other},
        steps=(
            Step("The ratio has # parts.", "parts", "share + other"),
            Step("One part is worth # dollars.", "part", "total / parts"),
            Step(f"The {wanted} share is # dollars.", "result", "share * part"),
        ),
        answer=share * total // (share + other),
    )


def interest(draw: Random) -> Problem:
    """Simple interest."""
    money, rate, years = 100 * draw.randint(2, 90), draw.randint(2, 15), draw.randint(2, 9)
    if draw.random() < 0.5:
        return Problem(
            question=f"What is the simple interest on ${money} at {rate}% a year for {years} years?",
            given={"money": money, "rate": rate, "years": years},
            steps=(
                Step("One year brings # dollars.", "yearly", "money * rate / 100"),
                Step(f"All {years} years bring # dollars.", "interest", "yearly * years"),
            ),
            answer=money // 100 * rate * years,
        )
    gain = money * rate * years // 100
    return Problem(
        question=f"At simple interest of {rate}% a year, a sum earns ${gain} in {years} years. What is the sum?",
        given={"gain": gain, "rate": rate, "years": years},
        steps=(
            Step("In all the years the rate adds up to # percent.", "percent", "rate * years"),
            Step("The sum is # dollars.", "money", "gain * 100 / percent"),
        ),
        answer=money,
    )


def ages(draw: Random) -> Problem:
    """Two ages, now and later."""
    older, younger = draw.choice((("father", "son"), ("mother", "daughter"), ("aunt", "niece"), ("uncle", "nephew")))
    factor, young, later = draw.randint(2, 7), draw.randint(3, 14), draw.randint(2, 20)
    total = young * (factor + 1) + 2 * later
    return Problem(
        question=f"The {older} is {factor} times as old as the {younger}. In {later} years their ages will add up to "
        f"{total}. How old is the {younger} now?",
        given={"total": total, "later": later, "factor": factor},
        steps=(
            Step(f"Both get {later} years older, so today the ages add up to #.", "today", "total - 2 * later"),
            Step(f"The sum is # times the age of the {younger}.", "times", "factor + 1"),
            Step(f"The {younger} is # years old.", "young", "today / times"),
        ),
        answer=young,
    )


def mixture(draw: Random) -> Problem:
    """A solution that is thinned with water."""
    stuff = draw.choice(("salt", "sugar", "acid", "alcohol"))
    weak = draw.randint(2, 30)
    volume, factor = draw.randint(4, 60), draw.randint(2, 5)
    strong, water = weak * factor, volume * (factor - 1)
    if strong > 95:
        return mixture(draw)
    return Problem(
        question=f"{water} liters of water are added to {volume} liters of a solution with {strong}% {stuff}. "
        f"What percentage of {stuff} does the new solution have?",
        given={"volume": volume, "strong": strong, "water": water},
        steps=(
            Step(f"Counted in hundredths of a liter, the {stuff} is #.", "stuff", "volume * strong"),
            Step("The new solution has # liters.", "mixed", "volume + water"),
            Step("Its percentage is #.", "percent", "stuff / mixed"),
        ),
        answer=weak,
    )


def river(draw: Random) -> Problem:
    """A boat with and against the current."""
    current, boat = draw.randint(2, 6), draw.randint(8, 25)
    hours = draw.randint(1, 4)
    down, up = boat + current, boat - current
    distance = down * up * hours
    return Problem(
        question=f"A boat makes {boat} kilometers per hour in still water. The river flows at {current} kilometers per "
        f"hour. How many hours does the boat need for {distance} kilometers down the river and back?",
        given={"distance": distance, "boat": boat, "current": current},
        steps=(
            Step("Down the river the speed is #.", "down", "boat + current"),
            Step("Against the river the speed is #.", "up", "boat - current"),
            Step("The way down takes # hours.", "there", "distance / down"),
            Step("The way back takes # hours.", "back", "distance / up"),
            Step("Both ways take # hours.", "hours", "there + back"),
        ),
        answer=2 * boat * hours,
    )


EXAM: tuple[Family, ...] = (profit, work_together, bridge, missing_value, ratio, interest, ages, mixture, river)
