"""Camera control: how a motion becomes poses, and poses become what the network reads.

`dsl` keys to poses, `twist` body twists to poses, `trajectory` given poses, `presets` speeds, limits and action
tables, `intrinsics` intrinsics and crop, `rays` the conditioning tensors, `anchor` what an anchored world adds to
them (these two need torch), `overlay` keys shown on a video. Poses are camera-to-world 4x4 in metres, OpenCV axes: x
right, y down, z forward.
"""
