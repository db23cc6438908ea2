"""ShapeWorld: pictures of coloured shapes and talk about them, made by rules from a seed.

A small pair of vision-language models is trained on it (recipes/shapeworld) and ships with the
package. So ensembles of drafts can be seen and measured where no large model fits.
"""
