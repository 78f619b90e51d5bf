"""ONNX operations that bring images of any size to a model's: those of `data.sources.square`."""

from __future__ import annotations

from typing import Any

SQUARE = "square"  # the tensor with the resized images

# The centre square, then every output pixel as a weighted mean of input pixels: rows and columns
# are weighted by one matrix [size, edge]. Shrinking, a weight is the share of the output pixel that
# lies in the input pixel, as with cv2.INTER_AREA; else it is that of the cubic with a = -0.75, as
# with cv2.INTER_CUBIC, which repeats the pixels at the border. Matrices are made in float64, since
# coordinates of large photos need more digits than float32 has. Images of the model's size pass.
_GRAPH = """
resize (uint8[batch, height, width, 3] images) => (uint8[batch, {size}, {size}, 3] {square})
{{
  resize_size = Constant <value_ints = [{size}]> ()
  resize_height = Shape <start = 1, end = 2> (images)
  resize_width = Shape <start = 2, end = 3> (images)
  resize_high = Equal (resize_height, resize_size)
  resize_wide = Equal (resize_width, resize_size)
  resize_fits = And (resize_high, resize_wide)
  {square} = If (resize_fits) <
    then_branch = keep () => (uint8[batch, {size}, {size}, 3] resize_kept)
    {{
      resize_kept = Identity (images)
    }},
    else_branch = change () => (uint8[batch, {size}, {size}, 3] resize_changed)
    {{
      two = Constant <value_ints = [2]> ()
      edges = Min (resize_height, resize_width)
      above = Sub (resize_height, edges)
      top = Div (above, two)
      beside = Sub (resize_width, edges)
      left = Div (beside, two)
      starts = Concat <axis = 0> (top, left)
      ends = Add (starts, edges)
      axes = Constant <value_ints = [1, 2]> ()
      cut = Slice (images, starts, ends, axes)

      zero = Constant <value = int64 {{0}}> ()
      one = Constant <value = int64 {{1}}> ()
      edge = Squeeze (edges)
      size = Squeeze (resize_size)
      columns = Range (zero, edge, one)
      rows = Range (zero, size, one)
      last = Constant <value_ints = [1]> ()
      standing = Unsqueeze (rows, last)
      j = Cast <to = 11> (columns)
      i = Cast <to = 11> (standing)
      long = Cast <to = 11> (edge)
      short = Cast <to = 11> (size)
      step = Div (long, short)
      unit = Constant <value = double {{1}}> ()
      none = Constant <value = double {{0}}> ()

      begin = Mul (i, step)
      end = Add (begin, step)
      next = Add (j, unit)
      low = Max (begin, j)
      high = Min (end, next)
      length = Sub (high, low)
      overlap = Max (length, none)
      area = Div (overlap, step)

      half = Constant <value = double {{0.5}}> ()
      middle = Add (i, half)
      scaled = Mul (middle, step)
      place = Sub (scaled, half)
      floor = Floor (place)
      taps = Constant <value = double[4, 1, 1] {{-1, 0, 1, 2}}> ()
      neighbour = Add (floor, taps)
      signed = Sub (place, neighbour)
      d = Abs (signed)
      near_a = Constant <value = double {{1.25}}> ()
      near_b = Constant <value = double {{2.25}}> ()
      near_ad = Mul (near_a, d)
      near_ab = Sub (near_ad, near_b)
      dd = Mul (d, d)
      near_dd = Mul (near_ab, dd)
      near = Add (near_dd, unit)
      far_a = Constant <value = double {{-0.75}}> ()
      far_b = Constant <value = double {{-5}}> ()
      far_c = Constant <value = double {{8}}> ()
      far_d = Constant <value = double {{-4}}> ()
      far_1 = Add (d, far_b)
      far_2 = Mul (far_1, d)
      far_3 = Add (far_2, far_c)
      far_4 = Mul (far_3, d)
      far_5 = Add (far_4, far_d)
      far = Mul (far_5, far_a)
      is_near = LessOrEqual (d, unit)
      tap = Where (is_near, near, far)
      border = Sub (long, unit)
      inside = Max (neighbour, none)
      clamped = Min (inside, border)
      hit = Equal (clamped, j)
      hits = Cast <to = 11> (hit)
      spread = Mul (hits, tap)
      first = Constant <value_ints = [0]> ()
      cubic = ReduceSum <keepdims = 0> (spread, first)

      shrinks = Less (size, edge)
      exact = Where (shrinks, area, cubic)
      weights = Cast <to = 1> (exact)
      pixels = Cast <to = 1> (cut)
      planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
      narrow = MatMul (weights, planes)
      turned = Transpose <perm = [1, 0]> (weights)
      small = MatMul (narrow, turned)
      back = Transpose <perm = [0, 2, 3, 1]> (small)
      whole = Round (back)
      black = Constant <value = float {{0}}> ()
      white = Constant <value = float {{255}}> ()
      shade = Clip (whole, black, white)
      resize_changed = Cast <to = 2> (shade)
    }}
  >
}}
"""


def nodes(size: int) -> list[Any]:
    """Operations from `images`, uint8 [batch, H, W, 3], to `SQUARE`, uint8 [batch, size, size, 3].

    They differ from `data.sources.square` by at most one step of 255 in a pixel.
    """
    import onnx

    return list(onnx.parser.parse_graph(_GRAPH.format(size=size, square=SQUARE)).node)
