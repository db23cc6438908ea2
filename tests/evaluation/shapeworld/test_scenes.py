"""Scenes and their pictures."""

import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from treesnake.evaluation.shapeworld.scenes import (
    COLORS,
    SHAPES,
    SIDE,
    Figure,
    as_png,
    draw,
    random_scene,
)


def test_a_seed_makes_the_same_scene_and_the_same_picture() -> None:
    first, second = Random(3), Random(3)
    assert random_scene(first) == random_scene(second)
    scene = random_scene(Random(4))
    assert np.array_equal(draw(scene, first), draw(scene, second))
    assert not np.array_equal(draw(scene, first), draw(scene, Random(5)))


def test_scenes_have_one_to_four_figures_in_the_order_of_their_corners() -> None:
    scenes = [random_scene(Random(seed)) for seed in range(100)]
    assert {len(scene) for scene in scenes} == {1, 2, 3, 4}
    assert all([*scene] == sorted(scene) for scene in scenes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_large", [False, True])
def test_a_figure_is_drawn_in_its_color_in_its_corner_only(shape: str, is_large: bool) -> None:
    picture = draw({3: Figure("red", shape, is_large)}, Random(0)).astype(int)
    is_red = (abs(picture - COLORS["red"]) < 60).all(-1)
    half = SIDE // 2
    assert 20 < is_red[half:, half:].sum() < half * half
    assert is_red.sum() == is_red[half:, half:].sum()


def test_figures_that_differ_look_different() -> None:
    figures = [Figure("blue", shape, is_large) for shape in SHAPES for is_large in (False, True)]
    pictures = [draw({0: figure}, Random(0)) for figure in figures]
    for index, picture in enumerate(pictures):
        assert all((picture != other).sum() > 30 for other in pictures[:index])


def test_a_png_holds_the_picture_enlarged() -> None:
    picture = draw(random_scene(Random(1)), Random(1))
    read = np.array(Image.open(io.BytesIO(as_png(picture, scale=3))))
    assert np.array_equal(read[1::3, 1::3], picture)
    assert read.shape == (3 * SIDE, 3 * SIDE, 3)
