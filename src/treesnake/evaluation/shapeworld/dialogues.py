"""Talk about scenes: tasks that make a dialogue each, from a seed.

The picture decides what is said in describe, exist, count and difference. In second turns (summary,
arithmetic) the text before does; problems and facts come without any picture, and stories with more
pictures than a drafter may have seen together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from treesnake.evaluation.shapeworld.scenes import (
    COLORS,
    CORNERS,
    SHAPES,
    Figure,
    Scene,
    random_figure,
    random_scene,
)

NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
)
PEOPLE = ("Tom", "Anna", "Ben", "Mia")
ANIMALS = ("dog", "cat", "bird", "horse")
THINGS = ("apples", "books", "coins", "cups")
CAPITALS = {
    "Paris": "France",
    "Tokyo": "Japan",
    "Cairo": "Egypt",
    "Rome": "Italy",
    "Madrid": "Spain",
    "Lima": "Peru",
}


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """What is said about pictures.

    Attributes:
        scenes: of the pictures, all of them before the first question.
        turns: one or two.
    """

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]


def describe(rng: Random) -> Dialogue:
    """Describes the picture."""
    scene = random_scene(rng)
    question = rng.choice(
        [
            "Describe the image.",
            "Describe this picture.",
            "What do you see?",
            "What is in the image?",
            "What shapes are there?",
        ]
    )
    return Dialogue((scene,), (Turn(question, _description(scene)),))


def exist(rng: Random) -> Dialogue:
    """Tells whether a figure is in the picture, by looking for it corner by corner."""
    scene = random_scene(rng)
    wanted = rng.choice([*scene.values()]) if rng.random() < 0.5 else random_figure(rng)
    name = f"{wanted.color} {wanted.shape}"
    question = f"Is there a {name}{rng.choice([' in the image', ''])}?"
    steps = ["We look at every corner of the image."]
    verdict = f"no, there is no {name} in the image."
    for corner, figure in scene.items():
        is_found = (figure.color, figure.shape) == (wanted.color, wanted.shape)
        steps.append(f"{_there(corner, figure)}{', and that is one' if is_found else ''}.")
        if is_found:
            verdict = f"yes, there is a {name} in the {CORNERS[corner]} corner of the image."
            break
    answer = " ".join([*steps, f"Therefore, {verdict}"])
    return Dialogue((scene,), (Turn(question, answer),))


def count(rng: Random) -> Dialogue:
    """Counts the figures of a color or shape, or all of them, corner by corner."""
    scene = random_scene(rng)
    wanted = rng.choice([*scene.values()]) if rng.random() < 0.6 else random_figure(rng)
    by_color, by_shape = f"{wanted.color} shapes", SHAPES[wanted.shape]
    name = rng.choice([by_color, by_color, by_color, by_shape, by_shape, "shapes"])
    question = rng.choice(
        [
            f"How many {name}?",
            f"How many {name} are there?",
            f"How many {name} are in the image?",
        ]
    )
    steps = ["To answer the question, we count from corner to corner."]
    number = 0
    for corner, figure in scene.items():
        counts = name in (f"{figure.color} shapes", SHAPES[figure.shape], "shapes")
        number += counts
        steps.append(f"{_there(corner, figure)}{f', number {NUMBERS[number]}' if counts else ''}.")
    answer = " ".join([*steps, f"Therefore, the number of {name} is {NUMBERS[number]}."])
    return Dialogue((scene,), (Turn(question, answer),))


def difference(rng: Random) -> Dialogue:
    """Compares two pictures that differ in one figure, corner by corner."""
    first = dict(random_scene(rng))
    second = dict(first)
    changed = rng.choice([*first])
    old = first[changed]
    if len(first) > 1 and rng.random() < 0.5:
        del second[changed]
    else:
        color = rng.choice([each for each in COLORS if each != old.color])
        second[changed] = Figure(color, old.shape, old.is_large)
    steps = ["We compare both images."]
    for corner, figure in first.items():
        after = second.get(corner)
        fate = "stays the same"
        if after is None:
            fate = "was removed in the second image"
        elif after != figure:
            fate = f"changed into a {after.name} in the second image"
        steps.append(f"The {figure.name} in the {CORNERS[corner]} corner {fate}.")
    question = "What is the difference between the two images?"
    return Dialogue((first, second), (Turn(question, " ".join(steps)),))


def summary(rng: Random) -> Dialogue:
    """Sums up the answer before, in a second turn."""
    before = rng.choice([describe, count])(rng)
    names = " and ".join(f"a {figure.name}" for figure in before.scenes[0].values())
    answer = f"In summary, the previous answer says that the image has {names}."
    question = rng.choice(["Summarize your answer.", "Summarize the previous answer."])
    return Dialogue(before.scenes, (*before.turns, Turn(question, answer)))


def arithmetic(rng: Random) -> Dialogue:
    """Solves a problem that has nothing to do with the picture, in a second turn."""
    before = rng.choice([describe, exist])(rng)
    return Dialogue(before.scenes, (*before.turns, _problem(rng)))


def problem(rng: Random) -> Dialogue:
    """Solves a problem, without a picture."""
    return Dialogue((), (_problem(rng),))


def facts(rng: Random) -> Dialogue:
    """Tells about a city, without a picture."""
    city = rng.choice([*CAPITALS])
    answer = (
        f"{city} is the capital of {CAPITALS[city]}. It is a large city and many people visit it "
        "every year to see its museums, parks and old streets."
    )
    return Dialogue((), (Turn(f"Tell me about {city}.", answer),))


def story(rng: Random) -> Dialogue:
    """Tells a story beside five pictures."""
    return _story(rng, 5)


def short_story(rng: Random) -> Dialogue:
    """Tells a story beside two pictures."""
    return _story(rng, 2)


def bare_story(rng: Random) -> Dialogue:
    """Tells a story that is asked for without pictures."""
    return _story(rng, 0)


Task = Callable[[Random], Dialogue]

TASKS: Mapping[str, Task] = {
    task.__name__: task
    for task in (
        describe,
        exist,
        count,
        difference,
        summary,
        arithmetic,
        problem,
        facts,
        short_story,
        story,
        bare_story,
    )
}


def caption(scene: Scene) -> str:
    """Returns what a coarse captioner says of a picture: colors and shapes, not where they are."""
    figures = ", ".join(f"a {figure.color} {figure.shape}" for figure in scene.values())
    return f"An image of {figures}."


def _description(scene: Scene) -> str:
    plural = "s" if len(scene) > 1 else ""
    figures = [
        f"There is a {figure.name} in the {CORNERS[corner]} corner."
        for corner, figure in scene.items()
    ]
    opening = f"The image shows {NUMBERS[len(scene)]} object{plural} on a dark background."
    return " ".join([opening, *figures])


def _there(corner: int, figure: Figure) -> str:
    return f"The {CORNERS[corner]} corner has a {figure.name}"


def _problem(rng: Random) -> Turn:
    first, second = rng.randint(1, 9), rng.randint(1, 9)
    who, what = rng.choice(PEOPLE), rng.choice(THINGS)
    has, buys, total = NUMBERS[first], NUMBERS[second], NUMBERS[first + second]
    question = (
        f"{who} has {has} {what} and buys {buys} more. How many {what} does {who} have? Let us "
        "think step by step."
    )
    answer = (
        f"{who} starts with {has} {what}. Then {who} buys {buys} more {what}. We add both numbers: "
        f"{has} plus {buys} equals {total}. Therefore, {who} has {total} {what}."
    )
    return Turn(question, answer)


def _story(rng: Random, num_pictures: int) -> Dialogue:
    who, animal = rng.choice(PEOPLE), rng.choice(ANIMALS)
    toy, where = rng.choice(["ball", "stick", "rope"]), rng.choice(["river", "old tree", "school"])
    question = f"Write a long story about {who} and a {animal}."
    if num_pictures:
        question = f"Given the images, write a long story about {who} and a {animal}."
    answer = (
        f"Once upon a time, {who} had a {animal}. Every day {who} and the {animal} walked to the "
        f"park and played with a {toy}. One day the {animal} was lost and {who} was very sad. "
        f"{who} looked everywhere and found the {animal} near the {where}. They went home and were "
        "happy ever after."
    )
    scenes = tuple(random_scene(rng) for _ in range(num_pictures))
    return Dialogue(scenes, (Turn(question, answer),))
