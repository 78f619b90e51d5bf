"""Stylised faces drawn with OpenCV, with age, gender and colouring to be read from them.

No picture of a person is in it. `people` says who is seen, `parts` draws them on a `canvas`, and
`drawing` makes the image.
"""
