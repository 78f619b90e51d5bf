"""Stylised faces drawn with OpenCV, in which age, gender and colouring are visible.

They use no picture of a person. `people` chooses who is drawn, `parts` draws them on a `canvas`,
and `drawing` makes the image.
"""
